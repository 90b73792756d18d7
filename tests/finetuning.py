"""A small preset, small labelled data, and flags to fine-tune the one on the other."""

import csv

import keras

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from trainers import finetune
from trainers.config import parse
from trainers.finetune_config import FinetuneConfig

ANIMATE = ("captain", "sister", "cat", "nobody", "jury")


def save_preset(folder, sentencepiece_proto):
    """Saves a preset of a masked-LM task, as trainers.pretrain leaves it."""
    keras.utils.set_random_seed(1)
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    backbone = DebertaBackbone(
        tokenizer.vocabulary_size(), 1, 2, 16, 32, bucket_size=8, max_sequence_length=32
    )
    task = DebertaMaskedLM(backbone, DebertaMaskedLMPreprocessor(tokenizer, 24))
    task.save_to_preset(folder)
    return folder


def write_data(folder, sentences):
    """Writes train, dev and test: whether the subject is one of some."""
    label = {
        text: "yes" if any(word in text for word in ANIMATE) else "no"
        for text in sentences
    }
    for split, part in (("train", (0, 60)), ("dev", (60, 83)), ("test", (83, 110))):
        rows = [
            (text, text[:9], label[text], len(text)) for text in sentences[slice(*part)]
        ]
        write_csv(
            folder / f"{split}.csv", [("sentence", "other", "label", "score"), *rows]
        )
    return folder


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def flags(preset, data, model_dir, **settings):
    settings = {
        "preset": preset,
        "train": data / "train.csv",
        "dev": data / "dev.csv",
        "test": data / "test.csv",
        "model_dir": model_dir,
        "sequence_length": 24,
        "batch_size": 8,
        "epochs": 1,
        "learning_rate": 0.01,
        "log_every": 4,
        "save_every": 4,
        **settings,
    }
    return [
        f"--{name}={value}" for name, value in settings.items() if value is not None
    ]


def config_of(preset, data, model_dir="unused", **settings):
    return parse(FinetuneConfig, flags(preset, data, model_dir, **settings))


def setup_of(config):
    return finetune.make_setup(config, finetune.read_splits(config)["train"])


def build_task(config):
    return finetune.build_task(setup_of(config))


def prepared(config):
    splits = finetune.read_splits(config)
    setup = finetune.make_setup(config, splits["train"])
    task = finetune.build_task(setup)
    return task, setup, finetune.encode_splits(setup, task, splits)
