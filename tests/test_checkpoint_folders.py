"""What `from_preset` reads of Hugging Face and Microsoft folders, and refuses."""

import json
import pathlib
import shutil

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.checkpoints import folders, transfer
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tasks import DebertaTextClassifier
from deberta_tf.tokenizers import load_tokenizer
from tests.foreign_folders import (
    cache_hub_repository,
    read_folder,
    with_head,
    write_folder,
    write_shards,
)


@pytest.fixture
def v3(golden):
    """A folder of a tiny v3 masked LM."""
    return golden / "golden/D1_off_v3_mlm_emd"


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def assert_same_weights(model, other):
    expected = weights_of(other)
    assert weights_of(model).keys() == expected.keys()
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_shards_read_as_one_file(v3, tmp_path):
    config, tensors = read_folder(v3)
    sharded = write_shards(tmp_path / "sharded", config, tensors)
    assert_same_weights(
        DebertaMaskedLM.from_preset(sharded), DebertaMaskedLM.from_preset(str(v3))
    )


def test_a_missing_shard_is_named(v3, tmp_path):
    folder = write_shards(tmp_path, *read_folder(v3))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="no 'model-00002-of-00003.safetensors'"):
        DebertaBackbone.from_preset(folder)


def test_a_tensor_that_its_shard_lacks_is_named(v3, tmp_path):
    folder = write_shards(tmp_path, *read_folder(v3))
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    index["weight_map"]["deberta.more"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index), "utf-8")
    with pytest.raises(ValueError, match="lack tensors of the index: deberta.more"):
        DebertaBackbone.from_preset(folder)


def test_an_index_can_not_name_a_file_outside_the_folder(v3, tmp_path):
    inside = tmp_path / "inside"
    folder = write_shards(inside, *read_folder(v3))
    outside = tmp_path / "model-00002-of-00003.safetensors"
    (inside / outside.name).rename(outside)
    path = inside / "model.safetensors.index.json"
    text = path.read_text("utf-8").replace(outside.name, f"../{outside.name}")
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="no '../model-00002"):
        DebertaBackbone.from_preset(folder)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16", "mixed_bfloat16"])
def test_half_precision_weights_are_cast_as_asked(v3, tmp_path, stored, wanted):
    config, tensors = read_folder(v3)
    halves = {name: value.astype(stored) for name, value in tensors.items()}
    folder = write_folder(tmp_path / "half", config, halves)
    backbone = DebertaBackbone.from_preset(folder, dtype=wanted)
    table = backbone.token_embedding.embeddings
    assert table.dtype == ("float32" if wanted.startswith("mixed") else wanted)
    half = halves["deberta.embeddings.word_embeddings.weight"].astype("float32")
    expected = half.astype(
        ml_dtypes.bfloat16 if wanted == "bfloat16" else table.dtype
    ).astype("float32")
    np.testing.assert_array_equal(np.asarray(table).astype("float32"), expected)


def test_a_file_cut_short_is_refused_by_name(v3, tmp_path):
    write_folder(tmp_path, *read_folder(v3))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors"):
        DebertaBackbone.from_preset(str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_other_prefixes_read_as_that_of_today(v3, tmp_path, prefix):
    config, tensors = read_folder(v3)
    renamed = {k.replace("deberta.", prefix): v for k, v in tensors.items()}
    folder = write_folder(tmp_path / "renamed", config, renamed)
    assert_same_weights(
        DebertaMaskedLM.from_preset(folder), DebertaMaskedLM.from_preset(str(v3))
    )


def test_every_missing_unexpected_and_misshapen_tensor_is_listed(v3, tmp_path):
    config, tensors = read_folder(v3)
    layer = "deberta.encoder.layer.1."
    del tensors[f"{layer}output.dense.bias"]
    tensors[f"{layer}intermediate.dense.weight"] = np.ones((32, 31), "float32")
    tensors["deberta.encoder.more.weight"] = np.ones((2, 3), "float32")
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match="do not fit") as error:
        DebertaBackbone.from_preset(folder)
    for problem in (
        r"missing encoder.layer.1.output.dense.bias (32,)",
        r"layer.1.intermediate.dense.weight is (32, 31), the model has (32, 32)",
        r"unexpected encoder.more.weight (2, 3)",
    ):
        assert problem in str(error.value)


def test_an_unexpected_tensor_tells_what_the_model_lacks(v3, tmp_path):
    config, tensors = read_folder(v3)
    tensors["deberta.encoder.conv.LayerNorm.bias"] = np.ones(32, "float32")
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match="with encoder/convolution/layer_norm/beta"):
        DebertaBackbone.from_preset(folder)


def test_nothing_is_set_when_something_does_not_fit(v3, tmp_path):
    config, tensors = read_folder(v3)
    backbone = DebertaBackbone.from_preset(str(v3))
    before = weights_of(backbone)
    tensors = {name: value + 1 for name, value in tensors.items()}
    tensors["deberta.encoder.layer.1.output.LayerNorm.bias"] = np.ones(3, "float32")
    folder = write_folder(tmp_path, config, tensors)
    checkpoint = folders.open_checkpoint(folder)
    with pytest.raises(ValueError, match="do not fit"):
        transfer.assign(backbone.weights, checkpoint.tensors)
    for path, value in weights_of(backbone).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


@pytest.mark.parametrize(
    "name",
    [
        "deberta.embeddings.position_ids",
        "deberta.embeddings.position_embeddings.weight",
        "deberta.embeddings.word_embeddings._weight",
        "cls.predictions.decoder.weight",
        "mask_predictions.dense.weight",
        "qa_outputs.weight",
        "config",
    ],
)
def test_known_leftovers_are_left_unread(golden, tmp_path, name):
    source = golden / "golden/C1_hf_v3"
    config, tensors = read_folder(source)
    folder = write_folder(tmp_path, config, {**tensors, name: np.ones((2, 2))})
    assert_same_weights(
        DebertaBackbone.from_preset(folder), DebertaBackbone.from_preset(str(source))
    )


def test_a_table_of_differences_alone_is_an_error_that_says_so(v3, tmp_path):
    config, tensors = read_folder(v3)
    name = "deberta.embeddings.word_embeddings."
    tensors[f"{name}_weight"] = tensors.pop(f"{name}weight")
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match="difference from the generator's table"):
        DebertaBackbone.from_preset(folder)


def test_heads_that_a_checkpoint_lacks_are_fresh_with_one_warning(golden):
    folder = str(golden / "golden/C3_hf_v3_c2p")
    with pytest.warns(UserWarning, match="pooler, classifier are fresh") as caught:
        classifier = DebertaTextClassifier.from_preset(folder, num_classes=3)
    assert len(caught) == 1
    backbone = DebertaBackbone.from_preset(folder)
    assert_same_weights(classifier.backbone, backbone)


def test_half_a_head_is_an_error(v3, tmp_path):
    config, tensors = read_folder(v3)
    del tensors["lm_predictions.lm_head.LayerNorm.bias"]
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match="missing lm_predictions.lm_head.LayerNorm.b"):
        DebertaMaskedLM.from_preset(folder)


def test_a_handle_reads_through_the_hub_library(v3, tmp_path, monkeypatch):
    cache_hub_repository(tmp_path, "someone/tiny", v3, monkeypatch)
    masked_lm = DebertaMaskedLM.from_preset("hf://someone/tiny")
    assert_same_weights(masked_lm, DebertaMaskedLM.from_preset(str(v3)))


def test_a_published_size_with_weights_reads_its_repository(
    v3, tmp_path, monkeypatch, sentencepiece_proto
):
    published = tmp_path / "published"
    shutil.copytree(v3, published)
    (published / "spm.model").write_bytes(sentencepiece_proto)
    cache_hub_repository(tmp_path, "microsoft/deberta-v3-base", published, monkeypatch)
    backbone = DebertaBackbone.from_preset("deberta_v3_base")
    assert_same_weights(backbone, DebertaBackbone.from_preset(str(v3)))
    tokenizer = load_tokenizer("deberta_v3_base")
    assert tokenizer.proto == sentencepiece_proto


def test_a_handle_that_can_not_be_reached_says_why(tmp_path, monkeypatch, v3):
    cache_hub_repository(tmp_path, "someone/tiny", v3, monkeypatch)
    with pytest.raises(ValueError, match="'hf://someone/else' has no config.json: .+"):
        DebertaBackbone.from_preset("hf://someone/else")


def test_a_handle_of_another_form_is_refused(tmp_path, monkeypatch, v3):
    cache_hub_repository(tmp_path, "someone/tiny", v3, monkeypatch)
    with pytest.raises(ValueError, match="hf://a/b/c"):
        DebertaBackbone.from_preset("hf://a/b/c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'deberta' or 'deberta-v2'.*'bert'"),
        ({"hidden_size": None, "vocab_size": None}, "no vocab_size, hidden_size"),
        ({"hidden_act": "gelu_new"}, "activation must be one of gelu, .*'gelu_new'"),
        ({"pooler_hidden_act": "leaky_relu"}, "must be one of gelu, .*'leaky_relu'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(v3, tmp_path, change, message):
    config, tensors = read_folder(v3)
    config = {k: v for k, v in {**config, **change}.items() if v is not None}
    folder = write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=message):
        DebertaTextClassifier.from_preset(folder, num_classes=2)


def test_a_config_that_is_no_json_is_refused_by_name(v3, tmp_path):
    write_folder(tmp_path, *read_folder(v3))
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        DebertaBackbone.from_preset(str(tmp_path))


def test_without_weights_a_folder_is_a_geometry(v3, tmp_path):
    config, _ = read_folder(v3)
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "deberta-v2"}), "utf-8"
    )
    backbone = DebertaBackbone.from_preset(str(tmp_path), load_weights=False)
    assert backbone.hidden_dim == config["hidden_size"]
    with pytest.raises(ValueError, match="has no weights: none of model.safetensors"):
        DebertaBackbone.from_preset(str(tmp_path))


def test_safetensors_are_read_one_at_a_time(v3):
    tensors = folders.open_checkpoint(str(v3)).tensors
    name = "embeddings.word_embeddings.weight"
    whole = safetensors.numpy.load_file(v3 / "model.safetensors")[f"deberta.{name}"]
    assert tensors[name].shape == whole.shape
    np.testing.assert_array_equal(tensors[name].read(), whole)


def test_a_handle_may_hold_a_preset_of_ours(v3, tmp_path, monkeypatch):
    masked_lm = DebertaMaskedLM.from_preset(str(v3))
    masked_lm.save_to_preset(str(tmp_path / "preset"))
    cache_hub_repository(tmp_path, "someone/tiny", tmp_path / "preset", monkeypatch)
    assert_same_weights(DebertaMaskedLM.from_preset("hf://someone/tiny"), masked_lm)


def test_a_geometry_without_published_weights_says_so():
    with pytest.raises(ValueError, match="'bert_base' .* load_weights=False"):
        DebertaBackbone.from_preset("bert_base")


def test_numbers_that_leave_a_class_out_name_none(v3, tmp_path):
    config, tensors = read_folder(v3)
    config = {**config, "id2label": {"0": "a", "2": "b"}}
    folder = write_folder(tmp_path, config, tensors)
    with (
        pytest.warns(UserWarning, match="They go without names"),
        pytest.warns(UserWarning, match="pooler, classifier are fresh"),
    ):
        classifier = DebertaTextClassifier.from_preset(folder, num_classes=2)
    assert classifier.labels is None


@pytest.mark.parametrize("source", ["foreign", "own", "own backbone"])
def test_options_of_the_backbone_reach_it_through_a_task(golden, tmp_path, source):
    folder = str(golden / "golden/D1_off_v3_mlm_emd")
    plain = DebertaMaskedLM.from_preset(folder)
    if source.startswith("own"):
        folder = str(tmp_path / "own")
        (plain if source == "own" else plain.backbone).save_to_preset(folder)
    options = {"attention_form": "gather", "clamp_distances": False}
    if source == "own backbone":
        with pytest.warns(UserWarning, match="all are fresh"):
            task = DebertaMaskedLM.from_preset(folder, **options)
    else:
        task = DebertaMaskedLM.from_preset(folder, **options)
        assert_same_weights(task, plain)
    assert_same_weights(task.backbone, plain.backbone)
    config = task.backbone.get_config()
    assert {name: config[name] for name in options} == options
    assert task.backbone.encoder.blocks[0].attention.attention_form == "gather"


def test_arguments_that_nobody_takes_are_refused_by_name(v3):
    for kind in (DebertaBackbone, DebertaMaskedLM):
        with pytest.raises(TypeError, match=f"{kind.__name__} .* no argument bogus"):
            kind.from_preset(str(v3), bogus=3)


def test_a_head_that_a_preset_of_ours_lacks_is_fresh_with_a_warning(v3, tmp_path):
    folder = str(tmp_path / "encoder")
    DebertaBackbone.from_preset(str(v3)).save_to_preset(folder)
    with pytest.warns(UserWarning, match="no head for DebertaMaskedLM.*all are fresh"):
        masked_lm = DebertaMaskedLM.from_preset(folder)
    assert_same_weights(masked_lm.backbone, DebertaBackbone.from_preset(str(v3)))


def test_a_second_copy_of_the_token_table_must_be_the_same(golden, tmp_path):
    source = golden / "golden/C7_hf_v3_embsize"
    folder = tmp_path / "legacy"
    config, tensors = read_folder(pathlib.Path(with_head(source, folder, "mlm_legacy")))
    plain = DebertaMaskedLM.from_preset(str(folder))
    table = tensors["deberta.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table.copy()
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    write_folder(folder, config, tensors)
    assert_same_weights(DebertaMaskedLM.from_preset(str(folder)), plain)
    tensors["cls.predictions.decoder.weight"][3] += 1
    write_folder(folder, config, tensors)
    with pytest.raises(
        ValueError, match="decoder.weight differs .* tie_word_embeddings"
    ):
        DebertaMaskedLM.from_preset(str(folder))


def test_a_model_that_was_built_in_a_scope_loads(v3):
    with keras.name_scope("outer"):
        backbone = DebertaBackbone.from_preset(str(v3))
    plain = DebertaBackbone.from_preset(str(v3))
    for weight, twin in zip(backbone.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(weight, twin)


def test_strings_for_a_task_without_a_tokenizer_are_refused(v3):
    with pytest.raises(ValueError, match="no preprocessor: it takes a dict of ids"):
        DebertaMaskedLM.from_preset(str(v3)).predict(["a text"], verbose=0)
