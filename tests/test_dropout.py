"""Dropout is that of Keras on one device, and another on each replica."""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.dropout import Dropout, ReplicaSeedGenerator
from tests.layer_checks import run_layer_checks
from tests.mirrored import mirrored

ONES = tf.ones([4, 50])
SEED = 11


def make_dropout(rate=0.5):
    layer = Dropout(rate)
    layer.seed_generator.state.assign([SEED, 0])
    return layer


def mask_of(tensor):
    return np.asarray(tensor) != 0


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_layer_keeps_the_contract(rate):
    run_layer_checks(
        Dropout,
        {"rate": rate},
        {"inputs": ONES},
        expected_output_shape=(4, 50),
        expected_num_weights=0,
    )


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_on_one_device_it_draws_what_keras_draws(rate):
    mine, keras_own = Dropout(rate), keras.layers.Dropout(rate, seed=SEED)
    assert len(mine.variables) == len(keras_own.variables)
    if rate:
        mine.seed_generator.state.assign([SEED, 0])
    for _ in range(3):
        np.testing.assert_array_equal(
            mine(ONES, training=True), keras_own(ONES, training=True)
        )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_drops_what_float32_does(policy):
    half = Dropout(0.001, dtype=policy)
    half.seed_generator.state.assign([SEED, 0])
    exact = make_dropout(0.001)
    inputs = tf.ones([400, 500])
    dropped = half(inputs, training=True)
    assert dropped.dtype == half.compute_dtype
    np.testing.assert_array_equal(
        mask_of(dropped), mask_of(exact(inputs, training=True))
    )


def test_it_acts_in_training_alone():
    np.testing.assert_array_equal(make_dropout()(ONES, training=False), ONES)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=f"Received: rate={rate}"):
        Dropout(rate)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_replicas_draw_other_masks_from_one_state(jit_compile):
    strategy = mirrored(2)
    with strategy.scope():
        layer = make_dropout()

    def drop():
        # Traced by each replica, as the gradients of a model's step are.
        return tf.function(
            lambda: layer(ONES, training=True), jit_compile=jit_compile
        )()

    step = tf.function(lambda: strategy.run(drop))
    for drawn in (1, 2):
        one, other = map(mask_of, strategy.experimental_local_results(step()))
        assert 0.3 < np.mean(one == other) < 0.7
        states = strategy.experimental_local_results(layer.seed_generator.state.value)
        assert [state.numpy().tolist() for state in states] == [[SEED, drawn]] * 2


def test_a_strategy_of_one_replica_draws_what_keras_draws():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        layer = make_dropout()
    drawn = strategy.run(tf.function(lambda: layer(ONES, training=True)))
    expected = keras.layers.Dropout(0.5, seed=SEED)(ONES, training=True)
    np.testing.assert_array_equal(drawn, expected)


def test_no_replica_of_many_comes_to_draws_of_another():
    generator = ReplicaSeedGenerator(SEED)
    seeds = []
    for replica in range(300):
        context = mock.Mock(num_replicas_in_sync=300, replica_id_in_sync_group=replica)
        with mock.patch.object(
            tf.distribute, "get_replica_context", return_value=context
        ):
            generator.state.assign([SEED, 0])
            seeds += [generator.next().numpy() for _ in range(3)]
    # Keras's dropout makes int32 of a seed so.
    assert len(np.unique(np.mod(seeds, 2**31 - 2), axis=0)) == 900


def test_a_given_seed_is_drawn_again_and_the_state_stays():
    layer = make_dropout()
    generator = layer.seed_generator
    seed = generator.next()
    state = generator.state.numpy()
    pairs = []
    for _ in range(2):
        with generator.giving(seed):
            pairs.append([layer(ONES, training=True) for _ in range(2)])
    first, another = pairs[0]
    np.testing.assert_array_equal(pairs[0], pairs[1])
    # A layer that drops out twice does so in two ways.
    assert (mask_of(first) != mask_of(another)).any()
    np.testing.assert_array_equal(generator.state.numpy(), state)
    np.testing.assert_array_equal(first, make_dropout()(ONES, training=True))
    assert (mask_of(layer(ONES, training=True)) != mask_of(first)).any()


def test_after_an_error_seeds_are_drawn_again():
    generator = ReplicaSeedGenerator(SEED)
    with pytest.raises(RuntimeError), generator.giving(tf.constant([1, 2], "int64")):
        raise RuntimeError
    np.testing.assert_array_equal(generator.next(), [SEED, 0])
