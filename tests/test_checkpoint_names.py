"""The table of names: one to one, and the same in both directions."""

import numpy as np
import pytest

from deberta_tf.checkpoints import names
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tasks import DebertaTextClassifier
from deberta_tf.torch_files import StoredTensor
from tests.small_models import make_backbone

MODELS = {
    "v1": {
        "bucket_size": 0,
        "share_position_projections": False,
        "key_bias": False,
        "normalize_relative_embeddings": False,
    },
    "v2": {"convolution_kernel_size": 3, "share_position_projections": False},
    "v3": {"embedding_dim": 8, "num_segments": 2, "absolute_position_input": True},
}
HEADS = {
    "masked_lm": DebertaMaskedLM,
    "classifier": lambda backbone: DebertaTextClassifier(backbone, 3),
}


def stored(value):
    return StoredTensor(value.shape, value.dtype, lambda: value)


def test_the_table_is_a_bijection():
    assert len(set(names.TABLE.values())) == len(names.TABLE)
    for ours, theirs in names.TABLE.items():
        ours, theirs = ours.replace("{i}", "17"), theirs.replace("{i}", "17")
        assert names.their_name(ours) == theirs
        assert names.our_path(theirs) == ours


@pytest.mark.parametrize("version", MODELS)
@pytest.mark.parametrize("head", HEADS)
def test_every_variable_has_a_name_of_its_own(version, head):
    model = HEADS[head](make_backbone(**MODELS[version]))
    paths = [weight.path for weight in model.weights]
    theirs = [names.their_name(path) for path in paths]
    assert len(set(theirs)) == len(paths)
    positions = "embeddings/position_embedding/embeddings"
    for path, name in zip(paths, theirs, strict=True):
        shared = path == f"head/decoder/{positions.partition('/')[2]}"
        assert names.our_path(name) == (positions if shared else path)


def test_an_unknown_name_has_no_other_side():
    with pytest.raises(ValueError, match="'head/unheard/kernel'"):
        names.their_name("head/unheard/kernel")
    assert names.our_path("encoder.layer.3.unheard.weight") is None


def standard(heads=2, width=6):
    """Tensors of one attention layer under standard names, all different."""
    rng = np.random.default_rng(0)
    stem = "encoder.layer.0.attention.self."
    shapes = dict.fromkeys(("query_proj", "key_proj", "value_proj"), (width, width))
    arrays = {f"{stem}{k}.weight": rng.normal(size=s) for k, s in shapes.items()}
    for name in ("query_proj", "value_proj", "pos_query_proj"):
        arrays[f"{stem}{name}.bias"] = rng.normal(size=width)
    for name in ("pos_key_proj", "pos_query_proj"):
        arrays[f"{stem}{name}.weight"] = rng.normal(size=(width, width))
    arrays["lm_predictions.lm_head.dense.weight"] = rng.normal(size=(4, width))
    arrays["lm_predictions.lm_head.bias"] = rng.normal(size=9)
    return arrays


@pytest.mark.parametrize("first_version", [True, False])
@pytest.mark.parametrize("legacy_head", [True, False])
def test_what_is_spelled_reads_back_bit_for_bit(first_version, legacy_head):
    arrays = standard()
    tensors = {name: stored(value) for name, value in arrays.items()}
    spelled = names.spelled_tensors(tensors, 2, first_version, legacy_head)
    again = names.standard_tensors(spelled, 2)
    assert again.keys() == arrays.keys()
    for name, tensor in again.items():
        assert tensor.shape == arrays[name].shape
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_v1_spells_as_v1_does():
    tensors = {name: stored(value) for name, value in standard().items()}
    stem = "deberta.encoder.layer.0.attention.self."
    assert set(names.spelled_tensors(tensors, 2, True, legacy_head=True)) == {
        f"{stem}in_proj.weight",
        f"{stem}q_bias",
        f"{stem}v_bias",
        f"{stem}pos_proj.weight",
        f"{stem}pos_q_proj.weight",
        f"{stem}pos_q_proj.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.bias",
    }


def test_in_proj_is_split_head_by_head():
    # Two heads of width 2: rows q q k k v v of head 0, then of head 1.
    merged = np.arange(12)[:, None] * np.ones([1, 4])
    name = "deberta.encoder.layer.0.attention.self.in_proj.weight"
    parts = names.standard_tensors({name: stored(merged)}, 2)
    rows = {key.split(".")[-2]: t.read()[:, 0].tolist() for key, t in parts.items()}
    assert rows == {
        "query_proj": [0, 1, 6, 7],
        "key_proj": [2, 3, 8, 9],
        "value_proj": [4, 5, 10, 11],
    }


def test_in_proj_of_other_rows_is_refused_by_name():
    tensors = {"encoder.layer.0.attention.self.in_proj.weight": stored(np.ones((8, 4)))}
    with pytest.raises(
        ValueError, match=r"in_proj.weight must .* 3 x 2 heads .*\(8, 4"
    ):
        names.standard_tensors(tensors, 2)


@pytest.mark.parametrize("prefix", ["deberta.", "bert.", ""])
def test_all_prefixes_come_to_one_name(prefix):
    tensors = {f"{prefix}embeddings.LayerNorm.bias": stored(np.ones(3))}
    assert list(names.standard_tensors(tensors, 1)) == ["embeddings.LayerNorm.bias"]


def test_two_tensors_of_one_name_are_refused():
    tensors = {
        "lm_predictions.lm_head.bias": stored(np.ones(3)),
        "cls.predictions.bias": stored(np.ones(3)),
    }
    with pytest.raises(ValueError, match="lm_predictions.lm_head.bias twice"):
        names.standard_tensors(tensors, 1)
