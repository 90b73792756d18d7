import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.dense import Dense
from tests.layer_checks import run_layer_checks

INPUTS = np.random.default_rng(0).normal(size=(4, 512, 6)).astype("float32")


def test_the_layer_keeps_the_contract():
    run_layer_checks(
        Dense,
        {"units": 5, "activation": "gelu"},
        {"inputs": INPUTS},
        expected_output_shape=(4, 512, 5),
        expected_num_weights=2,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_bias_gets_the_gradient_of_all_tokens(policy):
    layer = Dense(5, dtype=policy)
    layer.build(INPUTS.shape)
    upstream = np.random.default_rng(1).normal(0.2, 1.0, (4, 512, 5)).astype("float32")

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            output = tf.cast(layer(INPUTS, training=True), "float32")
            loss = tf.reduce_sum(output * upstream)
        return tape.gradient(loss, layer.bias.value)

    expected = upstream.sum((0, 1))
    # Of each number rounded to bfloat16, and of their sum.
    np.testing.assert_allclose(gradient(), expected, rtol=0.01)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_training_changes_nothing_in_what_it_computes(activation):
    layer = Dense(5, activation=activation, dtype="mixed_bfloat16")
    layer.build(INPUTS.shape)
    layer.bias.assign(np.arange(5) * 0.1)
    np.testing.assert_array_equal(layer(INPUTS, training=True), layer(INPUTS))
