"""Back to folders that Hugging Face reads: every tensor, label and token."""

import json

import numpy as np
import pytest

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.entity_scorer import DebertaEntityScorer
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.token_classifier import DebertaTokenClassifier
from deberta_tf.tokenizers import (
    DebertaBytePairTokenizer,
    DebertaSentencePieceTokenizer,
)
from tests.foreign_folders import read_folder, with_head, write_folder
from tests.small_models import make_backbone, randomize
from tests.test_golden import DECODERS, ENCODERS

POSITIONS = "deberta.embeddings.position_embeddings.weight"
TEXT = "the old captain sold the harbour."


def round_trip(task_class, folder, tmp_path, **kwargs):
    """Tensors before and after: there, ours, and back."""
    _, before = read_folder(folder)
    task = task_class.from_preset(str(folder), **kwargs)
    task.save_to_huggingface(str(tmp_path / "back"))
    _, after = read_folder(tmp_path / "back")
    return before, after


def assert_identical(before, after, left_out=()):
    assert before.keys() - after.keys() == set(left_out)
    assert after.keys() <= before.keys()
    for name, value in after.items():
        assert value.dtype == before[name].dtype
        assert value.tobytes() == before[name].tobytes(), name


@pytest.mark.parametrize("case", DECODERS)
def test_official_masked_lms_come_back_bit_for_bit(golden, case, tmp_path):
    assert_identical(*round_trip(DebertaMaskedLM, golden / "golden" / case, tmp_path))


@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_of_hugging_face_come_back_bit_for_bit(golden, case, tmp_path):
    before, after = round_trip(DebertaBackbone, golden / "golden" / case, tmp_path)
    # Heads, and the relative table of the model without position terms.
    heads = {n for n in before if n.startswith(("lm_predictions.", "pooler.", "cls"))}
    relative = {
        n for n in before if n.startswith("deberta.encoder.") and "layer." not in n
    }
    left_out = heads | (relative if case == "C5_hf_v3_none" else set())
    assert_identical(before, after, left_out)


def test_an_official_classifier_comes_back_but_for_its_unused_positions(
    golden, tmp_path
):
    folder = golden / "golden/D6_off_heads"
    before, after = round_trip(DebertaTextClassifier, folder, tmp_path)
    assert_identical(before, after, left_out=[POSITIONS])


def test_the_older_head_comes_back_where_its_width_needs_it(golden, tmp_path):
    with_head(golden / "golden/C7_hf_v3_embsize", tmp_path / "legacy", "mlm_legacy")
    before, after = round_trip(DebertaMaskedLM, tmp_path / "legacy", tmp_path)
    assert_identical(before, after)
    config, _ = read_folder(tmp_path / "back")
    assert config["legacy"] is True


def test_a_head_of_hugging_face_comes_back_without_a_decoder(golden, tmp_path):
    with pytest.warns(UserWarning, match="no absolute positions"):
        before, after = round_trip(
            DebertaMaskedLM, golden / "golden/C1_hf_v3", tmp_path
        )
    assert_identical(before, after)


@pytest.mark.parametrize("case", DECODERS)
def test_half_precision_comes_back_bit_for_bit(golden, case, tmp_path):
    config, tensors = read_folder(golden / "golden" / case)
    halves = {name: value.astype("float16") for name, value in tensors.items()}
    write_folder(tmp_path / "half", config, halves)
    masked_lm = DebertaMaskedLM.from_preset(str(tmp_path / "half"))
    assert masked_lm.head.dense.kernel.dtype == "float32"
    masked_lm.save_to_huggingface(str(tmp_path / "back"), dtype="float16")
    config, after = read_folder(tmp_path / "back")
    assert_identical(halves, after)
    assert config["dtype"] == "float16"


def test_a_config_comes_back_to_the_same_model(golden, tmp_path):
    for case in (*ENCODERS, *DECODERS):
        backbone = DebertaBackbone.from_preset(str(golden / "golden" / case))
        backbone.save_to_huggingface(str(tmp_path / case))
        again = DebertaBackbone.from_preset(str(tmp_path / case))
        before, after = backbone.get_config(), again.get_config()
        del before["name"], after["name"]
        assert after == before, case


def test_shards_are_written_within_their_limit_and_read_back(golden, tmp_path):
    source = golden / "golden/D1_off_v3_mlm_emd"
    masked_lm = DebertaMaskedLM.from_preset(str(source))
    masked_lm.save_to_huggingface(str(tmp_path / "back"), max_shard_size=2e-5)
    shards = sorted((tmp_path / "back").glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads(
        (tmp_path / "back/model.safetensors.index.json").read_text("utf-8")
    )
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    again = DebertaMaskedLM.from_preset(str(tmp_path / "back"))
    for old, new in zip(masked_lm.weights, again.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_labels_and_pieces_travel_there_and_back(tmp_path, sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    preprocessor = DebertaTextClassifierPreprocessor(tokenizer, sequence_length=24)
    classifier = DebertaTextClassifier(
        make_backbone(), 2, labels=["calm", "loud"], preprocessor=preprocessor
    )
    randomize(classifier)
    folder = str(tmp_path / "folder")
    classifier.save_to_huggingface(folder)
    config, _ = read_folder(tmp_path / "folder")
    assert config["id2label"] == {"0": "calm", "1": "loud"}
    assert config["label2id"] == {"calm": 0, "loud": 1}
    assert config["architectures"] == ["DebertaV2ForSequenceClassification"]
    again = DebertaTextClassifier.from_preset(folder)
    assert again.labels == ["calm", "loud"]
    np.testing.assert_array_equal(
        again.predict([TEXT], verbose=0), classifier.predict([TEXT], verbose=0)
    )


def test_the_pooler_travels_there_and_back(tmp_path):
    arguments = {"pooler_activation": "tanh", "pooler_dropout": 0.2, "dropout": 0.3}
    DebertaTextClassifier(make_backbone(), 2, **arguments).save_to_huggingface(
        str(tmp_path / "folder")
    )
    again = DebertaTextClassifier.from_preset(str(tmp_path / "folder")).get_config()
    assert {name: again[name] for name in arguments} == arguments


def test_a_byte_pair_vocabulary_travels_there_and_back(tmp_path):
    letters = {chr(c): i for i, c in enumerate(range(ord("a"), ord("z") + 1), 5)}
    specials = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": 40}
    vocabulary = {**specials, **letters, "Ġ": 31, "Ġt": 32, "Ġth": 33}
    tokenizer = DebertaBytePairTokenizer(vocabulary, ["Ġ t", "Ġt h"])
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, sequence_length=24)
    masked_lm = DebertaMaskedLM(make_backbone(), preprocessor)
    masked_lm.save_to_huggingface(str(tmp_path / "folder"))
    again = DebertaMaskedLM.from_preset(str(tmp_path / "folder"))
    assert isinstance(again.preprocessor.tokenizer, DebertaBytePairTokenizer)
    np.testing.assert_array_equal(
        again.preprocessor.tokenizer("this then"), tokenizer("this then")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 4}, "head_dim=4"),
        ({"key_bias": False}, "without key_bias.*bucket_size=8"),
    ],
)
def test_what_hugging_face_can_not_be_is_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(**arguments).save_to_huggingface(str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.txt"):
        make_backbone().save_to_huggingface(str(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("activation", ["leaky_relu", "selu"])
def test_activations_that_differ_there_are_not_written(tmp_path, activation):
    with pytest.raises(ValueError, match=f"computes the same.*'{activation}'"):
        make_backbone(activation=activation).save_to_huggingface(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "task",
    [
        lambda: DebertaTokenClassifier(make_backbone(), 3, hidden_layer=True),
        lambda: DebertaEntityScorer(make_backbone()),
    ],
)
def test_heads_that_hugging_face_has_not_are_named_for_none_of_its_classes(
    tmp_path, task
):
    before = task()
    with pytest.warns(UserWarning, match="no class with this head"):
        before.save_to_huggingface(str(tmp_path / "a"))
    config, _ = read_folder(tmp_path / "a")
    assert "architectures" not in config
    after = type(before).from_preset(str(tmp_path / "a"))
    for old, new in zip(before.weights, after.weights, strict=True):
        np.testing.assert_array_equal(old, new)
