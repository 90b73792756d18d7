"""Pretraining on a small vocabulary: batches, scores, a run and its mistakes."""

import json
import os
import re
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import files, rows
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.replaced_token import DebertaReplacedTokenDetection
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import train_sentencepiece
from trainers import callbacks, pretrain, pretraining_data
from trainers.config import field_help, parse

LENGTH = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences, sentencepiece_proto):
    """A folder with tokenizer/, rows/train, rows/held_out and other_tokenizer/."""
    folder = tmp_path_factory.mktemp("data")
    os.makedirs(folder / "tokenizer")
    (folder / "tokenizer" / "spm.model").write_bytes(sentencepiece_proto)
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    documents = [ids.numpy() for ids in tokenizer.tokenize(sentences)]
    for split, part in (("train", documents[:60]), ("held_out", documents[60:80])):
        packed = rows.pack_rows(part, tokenizer, LENGTH)
        rows.write_rows(str(folder / "rows" / split), packed, tokenizer)
    return folder


def flags(folder, model_dir, **settings):
    settings = {
        "data": folder / "rows" / "train",
        "tokenizer": folder / "tokenizer",
        "model_dir": model_dir,
        "num_layers": 1,
        "hidden_dim": 16,
        "num_heads": 2,
        "intermediate_dim": 32,
        "bucket_size": 8,
        "max_sequence_length": 32,
        "batch_size": 8,
        "total_steps": 6,
        "warmup_steps": 2,
        "learning_rate": 0.01,
        "log_every": 2,
        "save_every": 2,
        **settings,
    }
    return [
        f"--{name}={value}" for name, value in settings.items() if value is not None
    ]


def config_of(data, tmp_path, **settings):
    return parse(pretrain.PretrainConfig, flags(data, tmp_path, **settings))


def weights_of(model_dir):
    task = DebertaMaskedLM.from_preset(str(model_dir / "preset"), compile=False)
    return {weight.path: weight.numpy() for weight in task.weights}


def results_of(model_dir):
    return json.loads((model_dir / "results.json").read_text())


@pytest.mark.parametrize(
    "optimizer", ["adamw", pytest.param("adafactor", marks=pytest.mark.slow)]
)
def test_an_interrupted_pretraining_ends_as_a_whole_one(
    data, tmp_path, monkeypatch, optimizer
):
    held_out = {"held_out": data / "rows" / "held_out", "eval_every": 4}
    held_out["optimizer"] = optimizer
    assert not pretrain.main(flags(data, tmp_path / "whole", **held_out))
    on_step = callbacks.Progress.on_step

    def stop_at_three(self, step, logs):
        on_step(self, step, logs)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    command = flags(data, tmp_path / "stopped", **held_out)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_step", stop_at_three)
        assert pretrain.main(command) == 0
    assert not pretrain.main(command)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    for path, weight in whole.items():
        np.testing.assert_array_equal(weight, resumed[path], err_msg=path)
    assert results_of(tmp_path / "whole") == results_of(tmp_path / "stopped")


def test_a_finished_command_ends_at_once(data, tmp_path, monkeypatch, capsys):
    command = flags(data, tmp_path, total_steps=1, warmup_steps=0)
    pretrain.main(command)
    assert results_of(tmp_path)["held_out"] == {"step": 1}
    monkeypatch.setattr(pretrain, "build_task", None)
    capsys.readouterr()
    assert pretrain.main(command) == 0
    assert "is finished" in capsys.readouterr().out


def test_the_preset_goes_on_with_its_tokenizer_and_weights(data, tmp_path, capsys):
    config = config_of(data, tmp_path)
    task = pretrain.build_task(config, LENGTH)
    preset = str(tmp_path / "preset")
    callbacks.save_preset(task, preset, {})
    sizes = dict.fromkeys(pretrain.BACKBONE)
    again = {**sizes, "preset": preset, "tokenizer": None}
    loaded = pretrain.build_task(config_of(data, tmp_path, **again), LENGTH)
    for a, b in zip(task.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    tokenizer = loaded.preprocessor.tokenizer
    assert tokenizer.fingerprint() == task.preprocessor.tokenizer.fingerprint()
    assert loaded.preprocessor.sequence_length == LENGTH
    fresh = pretrain.build_task(
        config_of(data, tmp_path, **again, load_weights="false"), LENGTH
    )
    assert fresh.backbone.get_config()["num_layers"] == 1
    kernel = "encoder/block_0/attention/query/kernel"
    by_path = [{w.path: w.numpy() for w in model.weights} for model in (task, fresh)]
    assert not np.array_equal(by_path[0][kernel], by_path[1][kernel])


def test_masks_differ_by_epoch_and_not_by_where_a_run_starts(data, tmp_path):
    config = config_of(data, tmp_path)
    task = pretrain.build_task(config, LENGTH)
    train = rows.PretrainingRows(config.data)
    steps = list(pretraining_data.training_batches(config, task, train, 0, 20))
    late = list(pretraining_data.training_batches(config, task, train, 17, 20))
    tf.nest.map_structure(np.testing.assert_array_equal, steps[17:], late)
    assert len(train) < 8 * 10, "two epochs"
    restored, masks = [], []
    for inputs, mask_ids, mask_weights in steps:
        ids = inputs["token_ids"].numpy()
        for i in range(8):
            real = mask_weights[i].numpy() > 0
            at = inputs["mask_positions"][i].numpy()[real]
            ids[i, at] = mask_ids[i].numpy()[real]
            masks.append(tuple(at))
        restored += [tuple(row) for row in ids]
    first = [restored.index(row) for row in restored]
    again = [n for n, earlier in enumerate(first) if earlier < n]
    # The words of a row are few, so that some masks come twice by chance.
    assert np.mean([masks[n] != masks[first[n]] for n in again]) > 0.8
    originals = {tuple(row) for row in train.take(np.arange(len(train))).tolist()}
    assert set(restored) == originals


def test_held_out_scores_count_every_row_once(data, tmp_path):
    scores = []
    held_out = rows.PretrainingRows(str(data / "rows" / "held_out"))
    for batch_size in (4, 5, len(held_out)):
        config = config_of(data, tmp_path, batch_size=batch_size)
        keras.utils.set_random_seed(0)
        task = pretrain.build_task(config, LENGTH)
        evaluation = pretrain.held_out_evaluation(config, task, held_out)
        scores.append(evaluation.evaluate(task))
    assert len(held_out) % 4, "a last batch that is filled up"
    assert scores[0] == pytest.approx(scores[2], rel=1e-5)
    assert scores[1] == pytest.approx(scores[2], rel=1e-5)


def test_every_setting_has_its_help():
    config = pretrain.PretrainConfig
    assert set(field_help(config)) == set(config.__dataclass_fields__)


@pytest.fixture(scope="module")
def other_tokenizer(data, sentences):
    """A folder with a vocabulary of other pieces."""
    folder = data / "other_tokenizer"
    os.makedirs(folder)
    (folder / "spm.model").write_bytes(train_sentencepiece(sentences, 90))
    return folder


def test_rows_of_another_vocabulary_are_refused(data, tmp_path, other_tokenizer):
    with pytest.raises(ValueError, match="was made with the tokenizer"):
        pretrain.main(flags(data, tmp_path, tokenizer=other_tokenizer))


def test_a_preset_of_another_vocabulary_is_refused(data, tmp_path, other_tokenizer):
    task = pretrain.build_task(config_of(data, tmp_path), LENGTH)
    preset = tmp_path / "preset"
    task.save_to_preset(str(preset))
    sizes = dict.fromkeys(pretrain.BACKBONE)
    config = config_of(
        data, tmp_path, **{**sizes, "preset": preset, "tokenizer": other_tokenizer}
    )
    with pytest.raises(files.UsageError, match="is not the tokenizer that preset"):
        pretrain.build_task(config, LENGTH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "hidden_dim must be divisible by num_heads"),
        ({"num_layers": None}, "give --preset, or --num_layers"),
        ({"tokenizer": None}, "give --tokenizer"),
        ({"tokenizer": "no/where"}, "tokenizer: no file or folder 'no/where'"),
        ({"tokenizer": __file__}, "is not a SentencePiece model"),
        ({"data": "no/where"}, "no/where has no manifest.json"),
        ({"preset": "x"}, "the model is the preset's: leave out --num_layers and"),
        ({"max_sequence_length": 16}, "max_sequence_length=16, a sequence of 24"),
        ({"warmup_steps": 6}, "warmup_steps=6, total_steps=6"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\). Received: 1.0"),
        ({"mask_rate": 0.0}, r"mask_rate must be in \(0, 1\]. Received: 0.0"),
        ({"position_terms": "c2p,p2p"}, "position_terms must be"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, capsys, settings, message):
    command = flags(data, tmp_path / "model", **settings)
    with pytest.raises(SystemExit, match="2"):
        files.run_command(pretrain.main, command)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings(
    "ignore:Hugging Face's library has no class with this head:UserWarning"
)
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ours", "huggingface"])
def test_replaced_token_pretraining_goes_on_from_a_folder(data, tmp_path, layout):
    settings = {"objective": "replaced_token", "num_layers": 2}
    command = flags(data, tmp_path / "first", **settings)
    assert not pretrain.main(command)
    preset = str(tmp_path / "first" / "preset")
    if layout == "huggingface":
        first = DebertaReplacedTokenDetection.from_preset(preset, compile=False)
        preset = str(tmp_path / "theirs")
        first.save_to_huggingface(preset, tokenizer=first.preprocessor.tokenizer)
    own = {**dict.fromkeys(pretrain.BACKBONE), "tokenizer": None, "preset": preset}
    again = {**settings, **own, "total_steps": 2, "warmup_steps": 0}
    config = config_of(data, tmp_path / "again", **again)
    task = pretrain.build_task(config, LENGTH)
    first = DebertaReplacedTokenDetection.from_preset(
        str(tmp_path / "first" / "preset"), compile=False
    )
    delta = first.shared_embeddings.embedding_delta
    assert np.abs(delta).max() > 1e-4
    # A rounded sum is between them in Hugging Face's layout.
    np.testing.assert_allclose(task.shared_embeddings.embedding_delta, delta, atol=1e-6)
    assert task.num_tokens == task.preprocessor.tokenizer.vocabulary_size()
    assert not pretrain.main(flags(data, tmp_path / "again", **again))
