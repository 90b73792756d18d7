import json

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.published import PUBLISHED_SIZES
from tests.small_models import randomize

# SPEC 7, "exact parameter counts of the bare encoder"; the last is BERT base
# without its pooler: 109,482,240 - 590,592.
PARAMETERS = {
    "deberta_base": 138_601_728,
    "deberta_large": 405_163_008,
    "deberta_xlarge": 757_804_032,
    "deberta_v2_xlarge": 884_593_152,
    "deberta_v2_xxlarge": 1_564_549_632,
    "deberta_v3_xsmall": 70_682_112,
    "deberta_v3_small": 141_304_320,
    "deberta_v3_base": 183_831_552,
    "deberta_v3_large": 434_012_160,
    "mdeberta_v3_base": 278_218_752,
    "bert_base": 108_891_648,
}
SMALL = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 12,
    "intermediate_dim": 16,
    "max_sequence_length": 32,
    "bucket_size": 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def make_inputs(length=9, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), "int32")
    mask[-1, length // 2 :] = 0
    token_ids = rng.integers(5, 50, (batch, length)) * mask
    return {"token_ids": token_ids.astype("int32"), "padding_mask": mask}


@pytest.mark.parametrize(
    "name",
    [
        # 48 blocks, each of them traced.
        pytest.param(name, marks=pytest.mark.slow if "xlarge" in name else ())
        for name in PARAMETERS
    ],
)
def test_published_sizes_have_the_published_parameters(name):
    # In a graph variables are symbols: nothing is allocated.
    with tf.Graph().as_default():
        backbone = DebertaBackbone.from_preset(name, load_weights=False)
        assert backbone.count_params() == PARAMETERS[name]


def test_every_published_size_is_counted():
    assert set(PARAMETERS) == set(PUBLISHED_SIZES)


def test_the_xxlarge_model_is_the_one_of_the_paper():
    size = PUBLISHED_SIZES["deberta_v2_xxlarge"]
    assert (size["num_layers"], size["hidden_dim"], size["num_heads"]) == (48, 1536, 24)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bucket_size": 0, "share_position_projections": False, "key_bias": False},
        {"position_terms": ("c2p",)},
        {"position_terms": ("p2c",), "share_position_projections": False},
        {"position_terms": (), "absolute_position_input": True},
        {"convolution_kernel_size": 3, "convolution_activation": "tanh"},
        {"num_segments": 2, "embedding_dim": 8, "head_dim": 10},
    ],
    ids=str,
)
def test_every_variant_survives_its_config_and_a_keras_file(arguments, tmp_path):
    backbone = DebertaBackbone(**{**SMALL, **arguments})
    randomize(backbone)
    inputs = make_inputs()
    if "num_segments" in arguments:
        inputs["segment_ids"] = np.ones_like(inputs["token_ids"])
    config = json.loads(json.dumps(backbone.get_config()))
    assert DebertaBackbone.from_config(config).get_config() == backbone.get_config()
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(loaded(inputs), backbone(inputs))


def test_a_preset_gives_the_same_states_and_takes_another_form(tmp_path):
    backbone = DebertaBackbone(**SMALL)
    randomize(backbone)
    backbone.save_to_preset(str(tmp_path / "preset"))
    loaded = DebertaBackbone.from_preset(
        str(tmp_path / "preset"), attention_form="gather"
    )
    assert loaded.attention_form == "gather"
    np.testing.assert_allclose(
        loaded(make_inputs()), backbone(make_inputs()), atol=1e-5
    )


def test_kerashub_finds_the_class_of_a_preset(tmp_path):
    DebertaBackbone(**SMALL).save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    assert type(loaded) is DebertaBackbone


def test_hidden_states_end_in_the_output():
    backbone = DebertaBackbone(**SMALL)
    states = backbone.hidden_states(make_inputs())
    assert len(states) == 3
    np.testing.assert_array_equal(states[-1], backbone(make_inputs()))
    np.testing.assert_array_equal(states[0], backbone.embeddings(make_inputs()))


def test_tokens_do_not_see_padding():
    backbone = DebertaBackbone(**SMALL, convolution_kernel_size=3)
    randomize(backbone)
    inputs = make_inputs()
    other = {**inputs, "token_ids": inputs["token_ids"].copy()}
    padded = inputs["padding_mask"] == 0
    other["token_ids"][padded] = 7
    difference = np.abs(backbone(inputs) - backbone(other))[~padded]
    assert difference.max() == 0


def test_a_mask_of_pairs_hides_the_future():
    backbone = DebertaBackbone(**SMALL)
    randomize(backbone)
    inputs = make_inputs(length=6, batch=1)
    inputs["padding_mask"] = np.tril(np.ones((1, 6, 6), "int32"))
    before = backbone(inputs).numpy()
    inputs["token_ids"][0, 4] = 9 if inputs["token_ids"][0, 4] != 9 else 8
    after = backbone(inputs).numpy()
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_without_position_terms_and_positions_order_does_not_matter():
    backbone = DebertaBackbone(**SMALL, position_terms=())
    randomize(backbone)
    inputs = make_inputs(batch=1)
    inputs["padding_mask"][:] = 1
    turned = {**inputs, "token_ids": inputs["token_ids"][:, ::-1]}
    np.testing.assert_allclose(backbone(inputs)[:, ::-1], backbone(turned), atol=1e-5)


def test_relative_attention_has_no_longest_length():
    backbone = DebertaBackbone(**{**SMALL, "max_sequence_length": 16})
    assert np.all(np.isfinite(backbone(make_inputs(length=70))))


def test_absolute_positions_end_with_one_named_error():
    backbone = DebertaBackbone(**SMALL, absolute_position_input=True)
    with pytest.raises(ValueError, match="max_sequence_length=32, .* 33 tokens"):
        backbone(make_inputs(length=33))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_stays_close_under_a_policy(policy):
    full = DebertaBackbone(**SMALL)
    randomize(full)
    half = DebertaBackbone(**SMALL, dtype=policy)
    half.set_weights(full.get_weights())
    states = half(make_inputs())
    assert states.dtype == half.compute_dtype
    real = make_inputs()["padding_mask"] == 1
    difference = np.abs(tf.cast(states, "float32") - full(make_inputs()))[real]
    # bfloat16 keeps 8 bits: states of a few units, after some ten roundings.
    assert difference.max() < 0.15


def test_xla_computes_what_eager_execution_computes():
    backbone = DebertaBackbone(**SMALL, convolution_kernel_size=3)
    randomize(backbone)
    inputs = {name: tf.constant(value) for name, value in make_inputs().items()}
    compiled = tf.function(backbone, jit_compile=True)(inputs)
    np.testing.assert_allclose(compiled, backbone(inputs), atol=2e-5)


def test_a_table_of_ones_own_replaces_that_of_the_tokens():
    backbone = DebertaBackbone(**SMALL)
    inputs = make_inputs()
    own = backbone.token_embedding.embeddings
    np.testing.assert_array_equal(
        backbone.embeddings(inputs, table=own), backbone.embeddings(inputs)
    )
    other = backbone.embeddings(inputs, table=own + np.eye(50, 12))
    assert np.abs(other - backbone.embeddings(inputs)).max() > 0.1


def test_a_perturbation_adds_to_the_normalised_sum():
    backbone = DebertaBackbone(**SMALL)
    randomize(backbone)
    inputs = make_inputs()
    embeddings = backbone.embeddings
    delta = np.random.default_rng(3).normal(size=(2, 9, 12)).astype("float32")
    looked_up = embeddings.token_embedding(inputs["token_ids"]).numpy()
    centred = looked_up - looked_up.mean(-1, keepdims=True)
    spread = np.sqrt(centred.var(-1, keepdims=True) + 1e-7)
    expected = embeddings.layer_norm(centred / spread + delta)
    expected *= inputs["padding_mask"][..., None]
    np.testing.assert_allclose(
        embeddings(inputs, perturb=lambda x: x + delta), expected, atol=1e-5
    )


def test_the_last_block_alone_computes_the_last_state():
    backbone = DebertaBackbone(**SMALL)
    randomize(backbone)
    inputs = make_inputs()
    memory, last = backbone.hidden_states(inputs)[-2:]
    mask = inputs["padding_mask"]
    again = backbone.encoder.last_block(memory, memory, mask)
    np.testing.assert_allclose(again, last, atol=1e-6)
    at = np.array([[3, 0], [2, 2]])
    rows = tf.gather(memory, at, batch_dims=1)
    some = backbone.encoder.last_block(rows, memory, mask, query_positions=at)
    np.testing.assert_allclose(some, tf.gather(last, at, batch_dims=1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 13}, "hidden_dim=13, num_heads=2"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"convolution_kernel_size": 4}, "convolution_kernel_size=4"),
        (
            {"convolution_kernel_size": 3, "convolution_groups": 5},
            "hidden_dim=12, convolution_groups=5",
        ),
    ],
)
def test_wrong_sizes_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        DebertaBackbone(**{**SMALL, **arguments})


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'deberta_v9'.*deberta_v3_base"):
        DebertaBackbone.from_preset("deberta_v9")
