"""KerasHub's own DeBERTa v3, in and out."""

import keras_hub
import numpy as np
import pytest

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.checkpoints import keras_hub_presets, names
from deberta_tf.tasks import DebertaTextClassifier
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import make_backbone, randomize

# KerasHub's tokenizers leave the vocabulary's file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

TEXT = "the old captain sold the harbour."


@pytest.fixture
def hub_folder(tmp_path, sentencepiece_proto):
    """A preset that KerasHub wrote, with random weights."""
    model = keras_hub.models.DebertaV3Backbone(
        vocabulary_size=104,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        dropout=0.0,
        max_sequence_length=32,
        bucket_size=8,
    )
    randomize(model)
    folder = str(tmp_path / "hub")
    model.save_to_preset(folder)
    tokenizer = keras_hub.models.DebertaV3Tokenizer(sentencepiece_proto)
    tokenizer.save_to_preset(folder)
    return folder


def make_inputs(length=28):
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < np.array([[length], [length - 7]])).astype("int32")
    token_ids = rng.integers(5, 100, (2, length)).astype("int32") * mask
    return {"token_ids": token_ids, "padding_mask": mask}


def assert_same_states(model, other):
    inputs = make_inputs()
    difference = np.abs(model(inputs) - other(inputs))[inputs["padding_mask"] == 1]
    # Float32, states of a few units.
    assert difference.max() <= 2e-5


def test_a_preset_of_keras_hub_computes_the_same_here(hub_folder):
    hub = keras_hub.models.DebertaV3Backbone.from_preset(hub_folder)
    assert_same_states(DebertaBackbone.from_preset(hub_folder), hub)


def test_a_task_takes_the_encoder_and_the_tokenizer_of_keras_hub(hub_folder):
    with pytest.warns(UserWarning, match="pooler, classifier"):
        classifier = DebertaTextClassifier.from_preset(hub_folder, num_classes=2)
    hub = keras_hub.models.DebertaV3Backbone.from_preset(hub_folder)
    assert_same_states(classifier.backbone, hub)
    theirs = keras_hub.models.DebertaV3Tokenizer.from_preset(hub_folder)
    ours = classifier.preprocessor.tokenizer
    np.testing.assert_array_equal(ours(TEXT), theirs(TEXT))
    assert classifier.predict([TEXT], verbose=0).shape == (1, 2)


def test_keras_hub_computes_the_same_with_what_we_write(tmp_path, sentencepiece_proto):
    backbone = make_backbone(max_sequence_length=32)
    randomize(backbone)
    folder = str(tmp_path / "hub")
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    backbone.save_to_keras_hub(folder, tokenizer=tokenizer)
    hub = keras_hub.models.DebertaV3Backbone.from_preset(folder)
    assert_same_states(hub, backbone)
    theirs = keras_hub.models.DebertaV3Tokenizer.from_preset(folder)
    np.testing.assert_array_equal(theirs(TEXT), tokenizer(TEXT))


def test_every_weight_comes_back_bit_for_bit(tmp_path):
    backbone = make_backbone()
    randomize(backbone)
    backbone.save_to_keras_hub(str(tmp_path / "hub"))
    again = DebertaBackbone.from_preset(str(tmp_path / "hub"))
    for old, new in zip(backbone.weights, again.weights, strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old, new)


def test_names_are_one_to_one():
    model = keras_hub.models.DebertaV3Backbone(50, 3, 2, 8, 12, bucket_size=8)
    theirs = [keras_hub_presets.standard_name(w.path) for w in model.weights]
    assert len(set(theirs)) == len(theirs)
    backbone = DebertaBackbone(50, 3, 2, 8, 12, bucket_size=8)
    ours = {names.their_name(w.path) for w in backbone.weights}
    assert set(theirs) == ours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convolution_kernel_size": 3}, "convolution_kernel_size=3"),
        ({"position_terms": ("c2p",)}, "position_terms=.*c2p"),
        ({"embedding_dim": 8}, "embedding_dim=8"),
        ({"bucket_size": 0}, "bucket_size=0"),
        ({"max_relative_distance": 9}, "max_relative_distance=9"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ],
)
def test_what_keras_hub_can_not_be_is_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(**arguments).save_to_keras_hub(str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()
