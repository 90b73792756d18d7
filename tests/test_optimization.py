"""The schedule against the official one, and what weight decay reaches."""

import contextlib
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf.optimization import WarmupLinear, adafactor, adamw, layer_rates
from tests.mirrored import mirrored
from tests.small_models import make_backbone
from tests.test_strategies import check_same, classifier_data


@pytest.mark.parametrize(
    ("name", "continuous"), [("warmup_linear_shift", True), ("warmup_linear", False)]
)
def test_the_schedule_is_the_official_one(golden, name, continuous):
    official = json.loads((golden / "schedules.json").read_text())
    schedule = WarmupLinear(
        0.5, official["total"], official["warmup_steps"], continuous=continuous
    )
    rates = [float(schedule(step)) for step in official["steps"]]
    # 1e-7: one rounding to float32.
    np.testing.assert_allclose(rates, 0.5 * np.array(official[name]), atol=1e-7)


def test_without_warm_up_the_first_step_has_the_peak():
    assert float(WarmupLinear(2.0, 10)(0)) == 2.0


def test_past_the_last_step_the_rate_stays_zero():
    assert float(WarmupLinear(2.0, 10, 2)(15)) == 0.0


def test_the_schedule_survives_serialization():
    schedule = WarmupLinear(2.0, 10, 3, continuous=False)
    copy = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    assert copy.get_config() == schedule.get_config()
    assert float(copy(tf.constant(7, tf.int64))) == float(schedule(7))


def test_a_warm_up_without_an_end_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=10, total_steps=10"):
        WarmupLinear(1.0, 10, 10)


def small_model():
    return keras.Sequential(
        [
            keras.layers.Embedding(5, 4, name="token_embedding"),
            keras.layers.LayerNormalization(name="layer_norm"),
            keras.layers.Dense(3, bias_initializer="ones", name="dense"),
        ]
    )


@pytest.mark.parametrize("make", [adamw, adafactor])
def test_a_share_of_the_rate_is_that_share_of_the_step(make):
    """Decay included: of small steps, a share of the rate is one of the way."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype("float32")
    gradient = tf.constant(rng.normal(size=(4, 3)), tf.float32)

    def moved(rate, rates):
        found = [
            keras.Variable(start, name=name) for name in ("table", "block", "head")
        ]
        optimizer = make(rate, weight_decay=0.1, rates=rates)
        for _ in range(3):
            optimizer.apply([gradient] * len(found), found)
        return {variable.name: variable.numpy() for variable in found}

    found = moved(0.01, [("able$", 0.125), ("block|table", 0.5)])
    for name, share in (("table", 0.125), ("block", 0.5), ("head", 1.0)):
        alone = moved(0.01 * share, ())[name]
        np.testing.assert_allclose(found[name], alone, atol=1e-7)
    assert len({value.tobytes() for value in found.values()}) == 3


@pytest.mark.slow
def test_rates_and_decay_are_the_same_on_two_devices():
    found = []
    for scope in (contextlib.nullcontext(), mirrored(2).scope()):
        with scope:
            keras.utils.set_random_seed(1)
            task = deberta_tf.DebertaTextClassifier(make_backbone(num_layers=1), 2)
            # Decay is most of what moves.
            task.compile(adamw(1e-3, weight_decay=50.0, rates=layer_rates(1, 0.5)))
        task.fit(classifier_data().take(4), verbose=0)
        assert task.optimizer.weight_decay == 50.0
        found.append(task)
    check_same(*found, classifier_data())


def test_rates_fall_from_the_head_to_the_embeddings():
    backbone = make_backbone(num_layers=12, num_segments=2, convolution_kernel_size=3)
    task = deberta_tf.DebertaTextClassifier(backbone, 2)
    optimizer = adamw(1e-3, rates=layer_rates(12, 0.9))
    optimizer.build(task.trainable_variables)
    found = {
        variable.path: optimizer.factor_of(variable)
        for variable in task.trainable_variables
    }
    below = 0.9**13
    for path, factor in found.items():
        block = re.search(r"block_(\d+)/", path)
        expected = 1.0 if path.startswith("head/") else below
        if block:
            expected = 0.9 ** (12 - int(block[1]))
        assert factor == pytest.approx(expected), path
    assert found["encoder/relative_embeddings"] == pytest.approx(below)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    again.build(task.trainable_variables)
    assert again._factors == optimizer._factors
    few = adamw(1e-3, rates=layer_rates(2, 0.5))
    few.build(task.trainable_variables)
    upper = [v for v in task.trainable_variables if "block_11/" in v.path]
    assert {few.factor_of(variable) for variable in upper} == {1.0}
    with pytest.raises(ValueError, match="Received: -0.5 for 'a'"):
        adamw(1e-3, rates=[("a", -0.5)])
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"Received: {decay}"):
            layer_rates(2, decay)


def test_tables_and_kernels_decay_and_biases_and_norms_do_not():
    model = small_model()
    model.build((None, 2))
    # Another scale and offset than the initial ones, which decay could not move.
    model.layers[1].beta.assign([1.0] * 4)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer = adamw(0.5, weight_decay=0.1)
    zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    shrunk = {
        v.path.split("/", 1)[1]
        for v in model.trainable_variables
        if not np.array_equal(v.numpy(), before[v.path])
    }
    assert shrunk == {"token_embedding/embeddings", "dense/kernel"}
    kernel = model.layers[2].kernel
    # Times 1 - learning rate x decay; 1e-6 is a rounding to float32.
    np.testing.assert_allclose(kernel, before[kernel.path] * 0.95, rtol=1e-6)


def test_updates_follow_adamw_with_bias_correction():
    draw = np.random.default_rng(3)
    start, gradients = draw.normal(size=4), draw.normal(size=(6, 4))
    schedule = WarmupLinear(0.05, 6, 2)
    variable = keras.Variable(start, name="kernel")
    optimizer = adamw(schedule, weight_decay=0.1)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])

    w, m, v = start.copy(), 0.0, 0.0
    for step, gradient in enumerate(gradients):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        correction = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        rate = float(schedule(step))
        w -= rate * (correction * m / (np.sqrt(v) + 1e-6) + 0.1 * w)
    # 1e-6: float32 sums over six steps.
    np.testing.assert_allclose(variable.numpy(), w, atol=1e-6)


def adafactor_by_loops(weight, gradients, rates, decay):
    """The paper's algorithm 4, an element at a time; moments in float64."""
    rows, columns, elements = {}, {}, {}
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        weight = weight * (1 - rate * decay)
        kept = 1 - step**-0.8
        squares, update = gradient**2 + 1e-30, np.zeros_like(weight)
        for i in np.ndindex(weight.shape):
            if weight.ndim == 1:
                elements[i] = kept * elements.get(i, 0) + (1 - kept) * squares[i]
                update[i] = gradient[i] / elements[i] ** 0.5
        if weight.ndim == 2:
            for i in range(weight.shape[0]):
                rows[i] = kept * rows.get(i, 0) + (1 - kept) * squares[i].mean()
            for j in range(weight.shape[1]):
                columns[j] = (
                    kept * columns.get(j, 0) + (1 - kept) * squares[:, j].mean()
                )
            mean = sum(rows.values()) / len(rows)
            for i, j in np.ndindex(weight.shape):
                update[i, j] = gradient[i, j] / (rows[i] * columns[j] / mean) ** 0.5
        update /= max(1, np.sqrt((update**2).mean()))
        weight = weight - rate * update
    return weight


def test_adafactor_is_the_papers():
    model = small_model()
    model.build((None, 2))
    start = [weight.numpy() for weight in model.trainable_weights]
    schedule = WarmupLinear(0.1, 40, 5)
    optimizer = adafactor(schedule, weight_decay=0.2)
    rng = np.random.default_rng(0)
    gradients = [[rng.normal(size=w.shape) for w in start] for _ in range(20)]
    for step in gradients:
        given = [tf.constant(one, tf.float32) for one in step]
        optimizer.apply(given, model.trainable_weights)
    rates = [float(schedule(step)) for step in range(20)]
    for i, (weight, first) in enumerate(
        zip(model.trainable_weights, start, strict=True)
    ):
        # Table and kernel decay.
        decay = 0.2 if first.ndim == 2 else 0.0
        own = [step[i] for step in gradients]
        expected = adafactor_by_loops(first.astype("float64"), own, rates, decay)
        # Float32 over 20 steps of up to 0.1.
        weight = model.trainable_weights[i]
        np.testing.assert_allclose(weight, expected, atol=2e-6)
    # Of (5, 4) and (4, 3) a number for each row and column, of vectors all; the count
    # of steps.
    count = sum(np.prod(v.shape, dtype=int) for v in optimizer.variables)
    assert count == (5 + 4) + (4 + 3) + (4 + 4 + 3) + 1


def test_rows_without_a_gradient_stay_where_they_are_under_adafactor():
    table = keras.Variable(np.full((6, 4), 0.1, np.float32))
    optimizer = adafactor(0.01, weight_decay=0.0)
    gradient = np.zeros((6, 4), np.float32)
    gradient[2] = 1e-12
    gradient[3] = 1e4
    for _ in range(3):
        optimizer.apply([tf.constant(gradient)], [table])
    moved = table.numpy() != np.float32(0.1)
    assert np.isfinite(table.numpy()).all()
    # A step's length is not that of the gradient.
    np.testing.assert_array_equal(moved.all(axis=1), [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(moved.any(axis=1), [0, 0, 1, 1, 0, 0])


def test_adafactor_survives_serialization():
    optimizer = adafactor(WarmupLinear(2.0, 10, 3), average_decay=0.9)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copy) is type(optimizer)
    assert copy.get_config() == optimizer.get_config()
