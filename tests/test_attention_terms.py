import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.attention_terms import attention_terms
from tests.small_models import make_backbone, randomize

V1 = {
    "bucket_size": 0,
    "share_position_projections": False,
    "key_bias": False,
    "normalize_relative_embeddings": False,
}
KINDS = [
    V1,
    {"convolution_kernel_size": 3, "num_segments": 2},
    {"num_layers": 3},
    {"position_terms": ("c2p",)},
    {"position_terms": ("p2c",), "share_position_projections": False},
    {"position_terms": (), "absolute_position_input": True},
    {"embedding_dim": 6, "head_dim": 5},
    {"scan_layers": True, "num_layers": 3},
]
LENGTHS = (9, 4)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(3)
    padding_mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    token_ids = rng.integers(4, 100, padding_mask.shape) * padding_mask
    return {
        "token_ids": tf.constant(token_ids, tf.int32),
        "padding_mask": tf.constant(padding_mask, tf.int32),
        "segment_ids": tf.constant(np.arange(9) > 5, tf.int32)[None] * padding_mask,
    }


def make(**kind):
    backbone = make_backbone(**kind)
    randomize(backbone)
    return backbone


def called_with_scores(backbone, inputs, monkeypatch):
    """What the attention layers return beside their outputs in the model's own call."""
    call, scores = DisentangledSelfAttention.call, []

    def recorded(self, *args, **kwargs):
        output, one = call(self, *args, **kwargs, return_attention_scores=True)
        scores.append(one)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(DisentangledSelfAttention, "call", recorded)
        patch.setattr(backbone.encoder, "scan_layers", False)
        backbone(inputs)
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_the_softmax_of_the_sum_is_the_attention_of_the_model(
    kind, inputs, monkeypatch
):
    backbone = make(**kind)
    found = attention_terms(backbone, inputs)
    expected = called_with_scores(backbone, inputs, monkeypatch)
    assert len(found) == len(expected) == backbone.num_layers
    for terms, scores in zip(found, expected, strict=True):
        probabilities = terms.pop("probabilities")
        assert [*terms] == ["c2c", *backbone.position_terms]
        np.testing.assert_allclose(probabilities, scores, atol=1e-5)
        total = np.sum([*terms.values()], axis=0)
        for row, length in enumerate(LENGTHS):
            part = (row, slice(None), slice(length), slice(length))
            np.testing.assert_allclose(
                tf.nn.softmax(total[part]), scores.numpy()[part], atol=1e-5
            )


def test_nothing_is_there_of_padding(inputs):
    for terms in attention_terms(make(**V1), inputs):
        for one in terms.values():
            assert np.abs(one[1, :, : LENGTHS[1], : LENGTHS[1]]).min() > 0
            assert not np.any(one[1, :, LENGTHS[1] :])
            assert not np.any(one[1, :, :, LENGTHS[1] :])


def test_between_equal_tokens_the_position_terms_tell_the_distance_alone():
    backbone = make(num_layers=1)
    ids = tf.fill([1, 7], 5)
    (terms,) = attention_terms(backbone, {"token_ids": ids, "padding_mask": ids})
    for name in ("c2p", "p2c"):
        term = terms[name].numpy()[0, 0]
        np.testing.assert_allclose(term[:-1, :-1], term[1:, 1:], atol=1e-6)
        assert np.ptp(term[0]) > 1e-3
    assert np.ptp(terms["c2c"].numpy()[0, 0]) < 1e-5


def test_some_layers_are_those_of_all(inputs):
    backbone = make(num_layers=3)
    every = attention_terms(backbone, inputs)
    (last,) = attention_terms(backbone, inputs, layers=[2])
    for name, one in last.items():
        np.testing.assert_array_equal(one, every[2][name])


def test_another_layer_than_there_are_is_refused(inputs):
    with pytest.raises(ValueError, match=r"in \[0, 2\). Received: 2"):
        attention_terms(make(), inputs, layers=[2])


def test_the_terms_are_float32_in_half_precision(inputs):
    backbone = make(dtype="mixed_bfloat16")
    for terms in attention_terms(backbone, inputs):
        assert {one.dtype for one in terms.values()} == {tf.float32}
