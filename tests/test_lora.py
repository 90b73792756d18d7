"""KerasHub's low-rank adapters (LoRA) on the backbone: trained, saved, merged."""

import keras
import numpy as np
import pytest

import deberta_tf
from tests.small_models import make_backbone, randomize
from tests.test_strategies import classifier_data, make_optimizer

ADAPTER = "lora_kernel"


def make_classifier(**kwargs):
    keras.utils.set_random_seed(3)
    task = deberta_tf.DebertaTextClassifier(make_backbone(**kwargs), 2)
    randomize(task)
    return task


def values(weights):
    return {weight.path: weight.numpy() for weight in weights}


@pytest.fixture
def inputs():
    return next(iter(classifier_data()))[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
        {"scan_layers": True},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=["plain", "checkpointing", "loop", "bfloat16"],
)
def test_adapters_train_and_kernels_stay(options):
    task = make_classifier(**options)
    task.backbone.enable_lora(2)
    before = values(task.backbone.weights)
    adapted = {path.split("/")[-2] for path in before if ADAPTER in path}
    assert adapted == {"query", "value"}
    task.compile(make_optimizer())
    task.fit(classifier_data(), verbose=0)
    for path, value in values(task.backbone.weights).items():
        assert np.array_equal(value, before[path]) != (ADAPTER in path), path


def test_other_layers_may_have_them():
    backbone = make_backbone(key_bias=False, share_position_projections=False)
    backbone.enable_lora(2, ["key", "intermediate"])
    trained = {weight.path.split("/")[-2] for weight in backbone.trainable_weights}
    assert trained == {"key", "intermediate"}
    assert all(ADAPTER in weight.path for weight in backbone.trainable_weights)
    with pytest.raises(ValueError, match="Received: token_embedding"):
        make_backbone().enable_lora(2, ["query", "token_embedding"])


def train(task):
    task.backbone.enable_lora(2)
    task.compile(keras.optimizers.Adam(0.01))
    task.fit(classifier_data(), verbose=0)


@pytest.mark.slow
def test_adapters_are_kept_apart_and_come_back(tmp_path, inputs):
    task = make_classifier()
    train(task)
    path = str(tmp_path / "adapters.lora.h5")
    task.backbone.save_lora_weights(path)
    other = make_classifier()
    for weight in other.head.weights:
        trained = next(w for w in task.head.weights if w.path == weight.path)
        weight.assign(trained)
    assert np.abs(other(inputs) - task(inputs)).max() > 1e-3
    other.backbone.load_lora_weights(path)
    np.testing.assert_allclose(other(inputs), task(inputs), atol=1e-5)


@pytest.mark.parametrize("kind", ["preset", "huggingface", "backbone"])
def test_what_is_saved_has_them_merged(kind, tmp_path, inputs):
    task = make_classifier()
    plain = task(inputs)
    train(task)
    assert np.abs(task(inputs) - plain).max() > 1e-2
    folder = str(tmp_path / "saved")
    if kind == "preset":
        task.save_to_preset(folder)
        again = deberta_tf.DebertaTextClassifier.from_preset(folder, compile=False)
        pair = again(inputs), task(inputs)
    elif kind == "huggingface":
        task.save_to_huggingface(folder)
        again = deberta_tf.DebertaTextClassifier.from_preset(folder)
        pair = again(inputs), task(inputs)
    else:
        task.backbone.save_to_huggingface(folder)
        again = deberta_tf.DebertaBackbone.from_preset(folder)
        rows = {name: inputs[name] for name in ("token_ids", "padding_mask")}
        pair = again(rows), task.backbone(rows)
    assert not any(ADAPTER in weight.path for weight in again.weights)
    assert len(again.trainable_weights) == len(again.weights)
    np.testing.assert_allclose(*pair, atol=1e-5)
