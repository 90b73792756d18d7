"""Fine-tuning on small data: splits, scores, what is kept and written, mistakes."""

import csv
import json
import os
import re
import signal

import h5py
import keras
import numpy as np
import pytest

from deberta_tf import files, metrics
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tasks import DebertaTextClassifier
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.test_trainers_run import at_step
from trainers import finetune
from trainers.config import field_help, parse
from trainers.finetune_config import FinetuneConfig
from trainers.kinds.encoded import Encoded

ANIMATE = ("captain", "sister", "cat", "nobody", "jury")


@pytest.fixture(scope="module")
def preset(tmp_path_factory, sentencepiece_proto):
    """A preset of a masked-LM task, as trainers.pretrain leaves it."""
    keras.utils.set_random_seed(1)
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    backbone = DebertaBackbone(
        tokenizer.vocabulary_size(), 1, 2, 16, 32, bucket_size=8, max_sequence_length=32
    )
    task = DebertaMaskedLM(backbone, DebertaMaskedLMPreprocessor(tokenizer, 24))
    folder = str(tmp_path_factory.mktemp("pretrained") / "preset")
    task.save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    """A folder with train, dev and test: whether the subject is one of some."""
    folder = tmp_path_factory.mktemp("labelled")
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


def json_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_keeps_its_best_and_scores_it_on_dev_and_test(preset, data, tmp_path):
    assert not finetune.main(flags(preset, data, tmp_path, epochs=2, eval_every=4))
    results = json.loads((tmp_path / "results.json").read_text())
    history = {
        line["step"]: line["dev/accuracy"]
        for line in json_lines(tmp_path / "metrics.jsonl")
        if "dev/accuracy" in line
    }
    assert history[results["step"]] == max(history.values())
    assert results["dev"]["accuracy"] == max(history.values())
    assert set(history) == {4, 8, 12, 15}

    predictions = json_lines(tmp_path / "predictions-test.jsonl")
    assert [line["id"] for line in predictions] == list(range(27))
    right = np.mean([line["prediction"] == line["label"] for line in predictions])
    assert results["test"]["accuracy"] == pytest.approx(right)
    assert results["majority_class"]["label"] in ("yes", "no")

    kept = DebertaTextClassifier.from_preset(str(tmp_path / "preset"), compile=False)
    assert kept.labels == ["no", "yes"]
    with open(data / "test.csv", encoding="utf-8", newline="") as file:
        texts = [row["sentence"] for row in csv.DictReader(file)]
    logits = kept.predict(texts, verbose=0)
    answers = [kept.labels[i] for i in logits.argmax(axis=1)]
    assert answers == [line["prediction"] for line in predictions]


def test_it_learns_and_a_shuffled_control_does_not(preset, data, tmp_path):
    losses = {}
    for name in ("right", "shuffled"):
        config = config_of(preset, data, epochs=20, learning_rate=0.01)
        task, setup, encoded = prepared(config)
        train = encoded["train"]
        if name == "shuffled":
            order = np.random.default_rng(0).permutation(len(train))
            train = Encoded(train.inputs, train.targets[order])
        schedule = finetune.run.make_schedule(config, 100, 10)
        optimizer = finetune.run.make_optimizer(config, schedule)
        finetune.run.compile_task(task, config, optimizer)
        batches = finetune.training_batches(config, train, 0, 100)
        task.fit(batches, shuffle=False, verbose=0)
        logits = finetune.predict(config, task, encoded["dev"])
        found = logits.argmax(axis=1)
        losses[name] = metrics.accuracy(found, encoded["dev"].targets)
    assert losses["right"] > 0.9
    assert losses["shuffled"] < 0.8


@pytest.mark.slow
def test_scale_invariant_fine_tuning_goes_on_where_it_was(
    preset, data, tmp_path, monkeypatch
):
    """The same perturbations are drawn: the same bits as without an interruption."""
    found = {}
    for name in ("whole", "interrupted", "plain"):
        folder = tmp_path / name
        settings = {"learning_rate": 0.001}
        if name != "plain":
            settings |= {"sift": True, "sift_step_size": 0.1, "sift_initial_scale": 0.1}
        command = flags(preset, data, folder, **settings)
        if name == "interrupted":
            with monkeypatch.context() as patch:
                at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
                assert finetune.main(command) == 0
            assert not (folder / "results.json").exists()
        assert not finetune.main(command)
        found[name] = json.loads((folder / "results.json").read_text())
        scalars = json_lines(folder / "metrics.jsonl")
        logged = [line for line in scalars if "train/adversarial_loss" in line]
        assert bool(logged) == (name != "plain")
        path = folder / "preset/model.weights.h5"
        with h5py.File(path) as file:
            weights = []
            file.visititems(
                lambda _, item, kept=weights: (
                    kept.append(item[()]) if isinstance(item, h5py.Dataset) else None
                )
            )
        found[name, "weights"] = weights
    assert found["whole"] == found["interrupted"]
    same = [
        all(
            np.array_equal(one, two)
            for one, two in zip(
                found["whole", "weights"], found[other, "weights"], strict=True
            )
        )
        for other in ("interrupted", "plain")
    ]
    assert same == [True, False]


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_layers_stay_and_the_others_move(preset, data, tmp_path, frozen):
    settings = {"frozen_layers": frozen, "layer_decay": 0.5, "test": None}
    assert not finetune.main(flags(preset, data, tmp_path, **settings))
    before = DebertaBackbone.from_preset(preset)
    after = DebertaTextClassifier.from_preset(str(tmp_path / "preset"), compile=False)
    for one, other in zip(before.weights, after.backbone.weights, strict=True):
        stays = one.path.startswith("embeddings/") or (
            frozen and one.path.startswith("encoder/")
        )
        same = np.array_equal(one, other)
        assert same == bool(stays), one.path
    # What was frozen is not frozen for the next one.
    assert len(after.trainable_weights) == len(after.weights)


def test_without_its_weights_a_preset_gives_its_geometry(preset, data):
    config = config_of(preset, data, load_weights="false")
    fresh = build_task(config)
    loaded = build_task(config_of(preset, data))
    assert fresh.backbone.get_config()["hidden_dim"] == 16
    assert fresh.count_params() == loaded.count_params()
    source = DebertaBackbone.from_preset(preset)
    for a, b, c in zip(
        source.weights, loaded.backbone.weights, fresh.backbone.weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)
        if a.path.endswith(("kernel", "embeddings")):
            assert not np.array_equal(a, c), a.path


@pytest.mark.parametrize("batch_size", [4, 8, 23, 64])
def test_predictions_are_in_order_whatever_the_batch(preset, data, batch_size):
    config = config_of(preset, data, batch_size=batch_size)
    task, _, encoded = prepared(config)
    dev = encoded["dev"]
    logits = finetune.predict(config, task, dev)
    expected = task(dev.inputs, training=False)
    # 1e-5: the sums of a matmul depend on the batch.
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_epoch_trains_on_every_example_once(preset, data):
    config = config_of(preset, data, batch_size=6)
    task, setup, encoded = prepared(config)
    train = encoded["train"]
    steps = finetune.training_batches(config, train, 0, 10).as_numpy_iterator()
    inputs, targets = zip(*steps, strict=True)
    seen = np.concatenate([batch["token_ids"] for batch in inputs])
    as_rows = lambda ids, ys: sorted(  # noqa: E731
        (*row, y) for row, y in zip(ids.tolist(), ys.tolist(), strict=True)
    )
    assert as_rows(seen, np.concatenate(targets)) == as_rows(
        train.inputs["token_ids"], train.targets
    )
    assert not np.array_equal(seen, train.inputs["token_ids"])


def test_a_regression_is_scored_by_correlation(preset, data, tmp_path):
    command = flags(
        preset, data, tmp_path, regression="true", label_column="score", epochs=0.2
    )
    assert not finetune.main(command)
    results = json.loads((tmp_path / "results.json").read_text())
    lines = json_lines(tmp_path / "predictions-dev.jsonl")
    predictions = np.array([line["prediction"] for line in lines])
    labels = np.array([line["label"] for line in lines])
    assert results["dev"] == {
        "pearson": pytest.approx(metrics.pearson_correlation(predictions, labels)),
        "spearman": pytest.approx(metrics.spearman_correlation(predictions, labels)),
    }
    assert results["majority_class"] is None


def test_pairs_are_packed_into_one_row(preset, data):
    config = config_of(preset, data, text_columns="sentence,other", sequence_length=64)
    task, _, encoded = prepared(config)
    tokenizer = task.preprocessor.tokenizer
    row = encoded["dev"].inputs["token_ids"][0].tolist()
    columns = finetune.read_splits(config)["dev"].columns
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    a, b = (
        tokenizer(columns[name][0]).numpy().tolist() for name in ("text", "text_pair")
    )
    expected = [cls, *a, sep, *b, sep]
    assert len(expected) <= 64, "nothing is cut"
    assert row == expected + [0] * (64 - len(expected))


def test_a_test_set_without_labels_is_predicted_but_not_scored(preset, data, tmp_path):
    write_csv(tmp_path / "test.csv", [("sentence",), ("a cat",), ("a boat",)])
    command = flags(
        preset, data, tmp_path / "model", test=tmp_path / "test.csv", epochs=0.1
    )
    assert not finetune.main(command)
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["test"] is None
    assert set(results["majority_class"]) == {"label", "dev"}
    lines = json_lines(tmp_path / "model" / "predictions-test.jsonl")
    assert [set(line) for line in lines] == [{"id", "prediction", "scores"}] * 2


def test_declared_labels_give_the_order_of_the_classes(preset, data):
    config = config_of(preset, data, labels="yes,maybe,no")
    task, setup, encoded = prepared(config)
    assert task.labels == setup.names == ["yes", "maybe", "no"]
    assert set(encoded["train"].targets) == {0, 2}


def test_a_dry_run_writes_nothing(preset, data, tmp_path, capsys):
    command = flags(preset, data, tmp_path / "model", dry_run="true")
    assert not finetune.main(command)
    out = capsys.readouterr().out
    assert "train: 60 examples (no " in out
    assert "(8, 24)" in out
    assert "dry run: ok" in out
    assert not (tmp_path / "model").exists()


def test_weights_of_another_vocabulary_are_refused(preset, data, tmp_path):
    backbone = DebertaBackbone(1200, 1, 2, 8, 8, bucket_size=8)
    backbone.save_to_preset(str(tmp_path / "large"))
    settings = {"tokenizer": preset}
    config = config_of(tmp_path / "large", data, **settings)
    with pytest.raises(files.UsageError, match="1,200 rows: they are not of one"):
        build_task(config)
    fresh = config_of(tmp_path / "large", data, **settings, load_weights="false")
    assert build_task(fresh).num_classes == 2


def test_every_setting_has_its_help():
    config = FinetuneConfig
    assert set(field_help(config)) == set(config.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "no.csv"}, "no file 'no.csv'"),
        ({"preset": "no/where"}, "No preset 'no/where'"),
        ({"preset": "bert_base"}, "is a geometry, without published weights"),
        ({"preset": "deberta_v3_base"}, "'hf://microsoft/.*' has no config.json: .+"),
        ({"text_columns": "text"}, "has no column 'text'; found: 'sentence'"),
        ({"text_columns": "a,b,c"}, "text_columns must be one name, or two"),
        ({"label_column": "y"}, "has no column 'y'; .* Name it with --label_column"),
        ({"labels": "yes,maybe"}, "has label 'no' in row .* 'yes', 'maybe'"),
        ({"labels": "yes"}, "labels must be two or more different names"),
        ({"sequence_length": 2}, "sequence_length must be at least 3"),
        ({"regression": "true"}, "has label '(yes|no)' in row 1; a regression needs"),
        (
            {"best_by": "f1"},
            "best_by must be one of accuracy, macro_f1, matthews, mean",
        ),
        ({"task": "mnl"}, "no task 'mnl'; there are 'mnli'"),
        (
            {"task": "rte", "text_columns": "text"},
            "text_columns is for texts of yours, without --task",
        ),
        ({"data_dir": "glue"}, "data_dir is nothing without --task"),
        ({"train": None}, "--train is missing: name a file, or a --task"),
        ({"recipe": "off"}, "recipe is nothing without --task"),
        ({"task": "rte", "labels": "a,b"}, "can't be declared: rte has its own"),
        (
            {"task": "squad2", "sequence_length": 4},
            "sequence_length must be at least 5",
        ),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"warmup_fraction": 1}, r"warmup_fraction must be in \[0, 1\)"),
        ({"sift_weight": 3}, "sift_weight is nothing without --sift"),
        ({"sift": "true", "sift_weight": 0}, "sift_weight must be above 0"),
        ({"layer_decay": 0}, "layer_decay must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be at most 1"),
        ({"frozen_layers": 9}, r"num_blocks must be in \[0, 1\]. Received: 9"),
        ({"batchsize": 1}, "--batchsize; did you mean 'batch_size'"),
    ],
)
def test_mistakes_are_one_line(preset, data, tmp_path, capsys, settings, message):
    settings = {"preset": preset, **settings}
    command = flags(data=data, model_dir=tmp_path / "model", **settings)
    with pytest.raises(SystemExit, match="2"):
        files.run_command(finetune.main, command)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "model").exists()


def test_more_tokens_than_absolute_positions_are_refused(data, tmp_path, preset):
    backbone = DebertaBackbone(
        101,
        1,
        2,
        16,
        32,
        position_terms=(),
        absolute_position_input=True,
        bucket_size=8,
        max_sequence_length=16,
    )
    tokenizer = finetune.vocabulary.load_tokenizer(config_of(preset, data))
    folder = str(tmp_path / "preset")
    task = DebertaMaskedLM(backbone, DebertaMaskedLMPreprocessor(tokenizer, 16))
    task.save_to_preset(folder)
    with pytest.raises(ValueError, match="max_sequence_length=16, a sequence of 24"):
        build_task(config_of(folder, data))


def test_a_vocabulary_larger_than_the_table_is_refused(data, tmp_path, preset):
    folder = str(tmp_path / "preset")
    DebertaBackbone(50, 1, 2, 16, 32).save_to_preset(folder)
    config = config_of(folder, data, tokenizer=preset)
    with pytest.raises(ValueError, match="a tokenizer of 101, vocabulary_size=50"):
        build_task(config)


def test_one_class_alone_is_refused(preset, data, tmp_path):
    path = tmp_path / "train.csv"
    write_csv(path, [("sentence", "label"), ("a", "yes"), ("b", "yes")])
    config = config_of(preset, data, train=path)
    with pytest.raises(files.UsageError, match="has the one label 'yes'"):
        prepared(config)
