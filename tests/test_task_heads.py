"""Heads of the tasks, against a few lines of NumPy."""

import math

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import task_heads
from tests.small_models import randomize

STATES = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
# Two entities of up to three tokens; the last one of example 1 is not there.
ENTITIES = np.array([[[1, 2, 0], [4, 0, 0]], [[3, 1, 4], [0, 0, 0]]])
INPUTS = {"entity_positions": tf.constant(ENTITIES)}
HEADS = {
    "classification": lambda **kw: task_heads.ClassificationHead(
        3, 8, activation="tanh", **kw
    ),
    "token": lambda **kw: task_heads.TokenClassificationHead(3, 8, **kw),
    "token with hidden layer": lambda **kw: task_heads.TokenClassificationHead(
        3, 8, hidden_layer=True, **kw
    ),
    "span": lambda **kw: task_heads.SpanHead(8, **kw),
    "entity": lambda **kw: task_heads.EntityHead(8, **kw),
    "replaced token": lambda **kw: task_heads.ReplacedTokenHead(8, **kw),
}

WEIGHTS = {
    "classification": 4,
    "token": 2,
    "token with hidden layer": 4,
    "span": 2,
    "entity": 4,
    "replaced token": 6,
}


def make(name, **kwargs):
    head = HEADS[name](**kwargs)
    head.build(None)
    randomize(head)
    return head


def weights_of(head):
    return {weight.path: weight.numpy() for weight in head.weights}


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def dense(x, weights, name):
    kernel = next(w for path, w in weights.items() if path.endswith(f"{name}/kernel"))
    bias = next(w for path, w in weights.items() if path.endswith(f"{name}/bias"))
    return x @ kernel + bias


def expected_logits(name, head):
    """What the head computes, by loops over entities where there are any."""
    weights = weights_of(head)
    if name == "classification":
        return dense(np.tanh(dense(STATES[:, 0], weights, "pooler")), weights, "logits")
    if name == "token":
        return dense(STATES, weights, "logits")
    if name == "token with hidden layer":
        return dense(gelu(dense(STATES, weights, "hidden")), weights, "logits")
    if name == "span":
        return dense(STATES, weights, "span")
    if name == "replaced token":
        x = STATES[:, :1] + STATES
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-7)
        gamma, beta = (
            next(w for path, w in weights.items() if path.endswith(kind))
            for kind in ("gamma", "beta")
        )
        return dense(
            gelu(dense(x * gamma + beta, weights, "dense")), weights, "logits"
        )[..., 0]
    logits = np.full([2, 2], -10000.0)
    for b, e in np.ndindex(2, 2):
        rows = STATES[b, [p for p in ENTITIES[b, e] if p]]
        if len(rows):
            scores = np.exp(rows @ STATES[b, 0] / math.sqrt(8))
            mean = (scores / scores.sum()) @ rows
            hidden = gelu(dense(mean, weights, "hidden"))
            logits[b, e] = dense(hidden, weights, "logits")[0]
    return logits


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_heads_compute_what_numpy_computes(name, jit_compile):
    head = make(name)
    logits = tf.function(head, jit_compile=jit_compile)([tf.constant(STATES)], INPUTS)
    np.testing.assert_allclose(logits, expected_logits(name, head), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_heads_keep_the_contract(name):
    # Logits are float32 under every policy, which the common check does not expect.
    head, half = make(name), make(name, dtype="mixed_bfloat16")
    half.set_weights(head.get_weights())
    logits = head([STATES], INPUTS)
    rounded = half([tf.cast(STATES, "bfloat16")], INPUTS)
    assert logits.dtype == rounded.dtype == "float32"
    assert logits.shape == head.compute_output_spec([STATES], INPUTS).shape
    # bfloat16 keeps 8 bits of values of about one.
    np.testing.assert_allclose(rounded, logits, atol=0.05)
    assert len(head.weights) == WEIGHTS[name]
    revived = type(head).from_config(head.get_config())
    revived.build(None)
    revived.set_weights(head.get_weights())
    np.testing.assert_array_equal(revived([STATES], INPUTS), logits)


def test_the_first_token_alone_is_pooled():
    head = make("classification")
    other = STATES.copy()
    other[:, 1:] += 1.0
    before = head([STATES], {}).numpy()
    np.testing.assert_array_equal(head([other], {}), before)
    other[:, 0] += np.arange(8)
    assert np.abs(head([other], {}) - before).max() > 1e-4


@pytest.mark.parametrize("rate", ["dropout", "pooler_dropout"])
def test_dropout_acts_in_training_alone(rate):
    head = task_heads.ClassificationHead(3, 8, **{rate: 0.5})
    states = [tf.constant(STATES)]
    np.testing.assert_array_equal(head(states, {}), head(states, {}))
    trained = [head(states, {}, training=True) for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 0
