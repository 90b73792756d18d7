"""Fine-tuning on small data: splits, scores, what is kept and written."""

import csv
import json
import os
import signal

import h5py
import numpy as np
import pytest

from deberta_tf import metrics
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tasks import DebertaTextClassifier
from tests.finetuning import (
    build_task,
    config_of,
    flags,
    prepared,
    save_preset,
    write_csv,
    write_data,
)
from tests.test_trainers_run import at_step
from trainers import finetune
from trainers.kinds.encoded import Encoded


@pytest.fixture(scope="module")
def preset(tmp_path_factory, sentencepiece_proto):
    folder = str(tmp_path_factory.mktemp("pretrained") / "preset")
    return save_preset(folder, sentencepiece_proto)


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    return write_data(tmp_path_factory.mktemp("labelled"), sentences)


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
