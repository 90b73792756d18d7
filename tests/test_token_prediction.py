import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import token_prediction
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.token_prediction import (
    TokenAccuracy,
    TokenLoss,
    logits_of,
    num_chunks,
    predict_tokens,
)
from tests.small_models import make_backbone, randomize
from tests.test_masked_lm import make_batch
from tools import timing

VOCABULARY, WIDTH = 50, 8


@pytest.fixture
def small_chunks(monkeypatch):
    """Three positions, or fewer, are a chunk."""
    monkeypatch.setattr(token_prediction, "WHOLE", 4 * VOCABULARY)
    monkeypatch.setattr(token_prediction, "LARGEST_CHUNK", 4 * VOCABULARY * 3)


def make_positions(shape=(2, 7), dtype="float32"):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(*shape, WIDTH)), dtype)
    table = tf.constant(rng.normal(size=(VOCABULARY, WIDTH)), "float32")
    bias = tf.constant(rng.normal(size=VOCABULARY), "float32")
    labels = tf.constant(rng.integers(0, VOCABULARY, shape))
    weights = tf.constant(rng.choice([0.0, 0.25, 1.0], shape), "float32")
    return x, table, bias, labels, weights


def all_at_once(x, table, bias, labels, weights):
    """Loss and ids, of logits that are all there."""
    logits = logits_of(x, table, bias)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.reduce_sum(losses * weights), tf.argmax(logits, -1)


def with_gradients(function, positions):
    of = positions[:3]
    with tf.GradientTape() as tape:
        tape.watch(of)
        loss, ids, *_ = function(*positions)
        # What comes from above is not 1.
        scaled = 3.0 * loss
    return loss, ids, tape.gradient(scaled, of)


def in_training(*positions):
    return predict_tokens(*positions, training=True)


@pytest.mark.parametrize(
    "jit_compile", [pytest.param(None, marks=pytest.mark.slow), False, True]
)
def test_chunks_give_what_all_logits_give(small_chunks, jit_compile):
    positions = make_positions()
    run = with_gradients
    if jit_compile is not None:
        run = tf.function(with_gradients, jit_compile=jit_compile, autograph=False)
    found = run(in_training, positions)
    expected = with_gradients(all_at_once, positions)
    # Sums in another order.
    tf.nest.map_structure(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


def test_rows_of_an_unknown_number_are_chunked_too(small_chunks):
    positions = make_positions((5, 4))
    specs = [
        tf.TensorSpec(
            one.shape if one.shape[0] == VOCABULARY else [None, *one.shape[1:]],
            one.dtype,
        )
        for one in positions
    ]

    @tf.function(input_signature=specs, autograph=False)
    def run(*positions):
        return with_gradients(in_training, positions)

    loss, ids, gradients = run(*positions)
    expected = with_gradients(all_at_once, positions)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(ids, expected[1])
    for one, other in zip(gradients, expected[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_of_half_precision_are_summed_in_float32(small_chunks):
    positions = make_positions((30, 40), "bfloat16")
    # The same numbers, so that products alone are rounded.
    exact = (tf.cast(positions[0], "float32"), *positions[1:])
    _, _, (d_x, d_table, d_bias) = with_gradients(in_training, positions)
    _, _, expected = with_gradients(all_at_once, exact)
    assert (d_x.dtype, d_table.dtype, d_bias.dtype) == (
        "bfloat16",
        "float32",
        "float32",
    )
    for one, other in zip((d_x, d_table, d_bias), expected, strict=True):
        error = tf.norm(tf.cast(one, "float32") - other) / tf.norm(other)
        # bfloat16 has 8 bits: the table and the softmax are rounded by 2^-9 each.
        assert error < 2**-7


def test_draws_are_made_of_the_logits_each_chunk_by_another_seed(small_chunks):
    positions = make_positions((1, 7))
    seeds = []

    def draw(logits, seed):
        seeds.append(tuple(seed.numpy()))
        return tf.argmin(logits, -1)

    found = predict_tokens(*positions, draw=draw, seed=(5, 2))
    lowest = tf.argmin(logits_of(*positions[:3]), -1)
    np.testing.assert_array_equal(found.drawn, lowest)
    assert len(set(seeds)) == 3
    assert seeds[0] == (5, 2)


def test_logits_are_whole_where_they_are_small():
    assert num_chunks(20, 1000) == 1
    # 640 masked positions of v3's table.
    assert num_chunks(640, 128_100) == 2
    assert num_chunks(100_000, 128_100) == 191


@pytest.mark.parametrize("count", [1, 130, 131, 640, 100_000])
def test_an_unknown_number_is_chunked_as_a_known_one(count):
    found = int(num_chunks(tf.constant(count), 128_100))
    # By whole rows: never fewer chunks, and hardly more.
    assert 0 <= found - num_chunks(count, 128_100) <= 1


def peak(chunked):
    """Bytes that a step takes at most, and those of its logits."""
    if not chunked:
        token_prediction.WHOLE = 2**40
    rows, vocabulary, width = 1024, 64_000, 16
    x, table = tf.random.normal([rows, width]), tf.random.normal([vocabulary, width])
    labels, weights = tf.zeros([rows], "int32"), tf.ones([rows])

    @tf.function(autograph=False)
    def step(x, table):
        with tf.GradientTape() as tape:
            tape.watch((x, table))
            bias = tf.zeros([vocabulary])
            found = predict_tokens(x, table, bias, labels, weights, training=True)
        return tape.gradient(found.loss, (x, table))

    step.get_concrete_function(x, table)
    return timing.growth(lambda: step(x, table)), 4 * rows * vocabulary


@pytest.mark.slow
def test_logits_of_all_positions_are_never_held_at_once():
    grown, size = timing.in_own_process(peak, True)
    assert grown < 0.9 * size
    grown, size = timing.in_own_process(peak, False)
    assert grown > size


def fitted(**kwargs):
    keras.utils.set_random_seed(0)
    masked_lm = DebertaMaskedLM(make_backbone(num_layers=1, dropout=0.0))
    randomize(masked_lm)
    masked_lm.compile(keras.optimizers.SGD(0.1), **kwargs)
    inputs, labels, weights = make_batch()
    weights[0, 1:] = 0.0
    history = masked_lm.fit(
        inputs, labels, 4, sample_weight=weights, epochs=2, verbose=0
    ).history
    scores = masked_lm.evaluate(
        inputs, labels, sample_weight=weights, return_dict=True, verbose=0
    )
    return masked_lm, history, scores


def test_a_loss_of_ones_own_gets_logits_and_trains_alike():
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    own, history, scores = fitted(
        loss=loss,
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
    )
    task, expected, expected_scores = fitted()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    assert scores == pytest.approx(expected_scores, rel=1e-5)
    for one, other in zip(own.weights, task.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=one.path)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"loss": TokenLoss(), "weighted_metrics": [TokenAccuracy()]},
        {"metrics": None, "weighted_metrics": []},
    ],
)
def test_no_more_logits_are_made_than_those_of_a_chunk(kwargs, monkeypatch):
    made = []

    def logits_of_chunk(x, *tied):
        made.append(x.shape[0])
        return logits_of(x, *tied)

    monkeypatch.setattr(token_prediction, "WHOLE", 0)
    monkeypatch.setattr(token_prediction, "LARGEST_CHUNK", 4 * 104 * 7)
    monkeypatch.setattr(token_prediction, "logits_of", logits_of_chunk)
    monkeypatch.setattr("deberta_tf.heads.logits_of", lambda *_: pytest.fail("all"))
    masked_lm = DebertaMaskedLM(make_backbone(num_layers=1))
    masked_lm.compile(keras.optimizers.SGD(0.1), run_eagerly=True, **kwargs)
    batch = make_batch()
    masked_lm.train_on_batch(*batch)
    masked_lm.test_on_batch(*batch)
    # Twenty positions, twice.
    assert made == [7, 7, 7] * 2
