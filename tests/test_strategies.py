"""The same global batch gives the same training on any number of devices."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tasks import DebertaTextClassifier
from tests.mirrored import mirrored
from tests.small_models import make_backbone

STEPS = 20
BATCH = 8
LENGTH = 16
PLACES = 6
# Adam divides by the root of the second moment: what has no true gradient moves by
# rounding alone (SPEC 14.4).
WITHOUT_GRADIENT = ("key/bias", "position_key/bias")


def masked_lm_data(num_batches=STEPS, seed=0):
    """Rows whose halves have very different numbers of masked tokens."""
    rng = np.random.default_rng(seed)
    num_rows = BATCH * num_batches
    token_ids = rng.integers(5, 104, (num_rows, LENGTH))
    lengths = rng.integers(8, LENGTH + 1, (num_rows, 1))
    padding_mask = np.arange(LENGTH) < lengths
    positions = np.sort(
        np.stack([rng.permutation(np.arange(1, 8))[:PLACES] for _ in range(num_rows)])
    )
    most = np.where(np.arange(num_rows) % BATCH < BATCH // 2, PLACES, 1)
    weights = (np.arange(PLACES) < most[:, None]).astype("float32")
    inputs = {
        "token_ids": token_ids * padding_mask,
        "padding_mask": padding_mask,
        "mask_positions": positions * (weights > 0),
    }
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    labels = np.take_along_axis(token_ids, positions, 1).astype("int32")
    samples = (inputs, labels, weights)
    return tf.data.Dataset.from_tensor_slices(samples).batch(BATCH, drop_remainder=True)


def classifier_data():
    def label(inputs, labels, weights):
        del inputs["mask_positions"]
        return inputs, inputs["token_ids"][:, 1] % 2

    return masked_lm_data().map(label)


def make_optimizer(**kwargs):
    # The first rate of a warm-up is 0; constant here, as the bound is for 1e-4.
    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.1, epsilon=1e-6, **kwargs)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def train(task_class, data, strategy=None, compile=None, optimizer=None, **kwargs):
    """The task after an epoch, and what `fit` logged."""
    keras.utils.set_random_seed(7)
    with strategy.scope() if strategy else contextlib.nullcontext():
        backbone = {"num_layers": 1, **kwargs.pop("backbone", {})}
        task = task_class(make_backbone(**backbone), **kwargs)
        task.compile(make_optimizer(**(optimizer or {})), **(compile or {}))
    steps = None if isinstance(data, tf.data.Dataset) else STEPS
    history = task.fit(data, steps_per_epoch=steps, verbose=0).history
    return task, history


def is_moved_by_rounding(variable):
    return variable.path.endswith(WITHOUT_GRADIENT)


def check_same(one, other, data, atol=1e-5):
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        if "seed_generator" in mine.path or is_moved_by_rounding(mine):
            continue
        np.testing.assert_allclose(mine, theirs, atol=atol, err_msg=mine.path)
    inputs = next(iter(data))[0]
    found, expected = one(inputs, training=False), other(inputs, training=False)
    np.testing.assert_allclose(found, expected, atol=atol)


TOGETHER = {
    "compile": {
        "global_clipnorm": 0.05,
        "gradient_accumulation_steps": 2,
        "steps_per_execution": 3,
    },
    "optimizer": {
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 6,
    },
}
FITS = {
    "plain": {},
    "together": TOGETHER,
    "clipping": {"compile": {"global_clipnorm": 0.05}},
    "accumulation": {"compile": {"gradient_accumulation_steps": 2}},
    "averages": {"optimizer": TOGETHER["optimizer"]},
    "several_steps": {"compile": {"steps_per_execution": 3}},
    "xla": {"compile": {"jit_compile": True}},
}


@pytest.fixture(scope="module")
def on_one_device():
    """What one device makes of a batch, once for each way to train."""
    done = {}

    def get(task_class, data, name, **kwargs):
        if (task_class, name) not in done:
            settings = FITS[name]
            if name in ("accumulation", "several_steps", "xla"):
                settings = {}
            elif name == "together":
                clipping = {"global_clipnorm": 0.05}
                settings = {**settings, "compile": clipping}
            done[task_class, name] = train(task_class, data, **settings, **kwargs)
        return done[task_class, name]

    return get


def cases():
    """(devices, name of the fit); those that add least are slow."""
    for name in FITS:
        yield pytest.param(2, name, marks=pytest.mark.slow)
    yield pytest.param(4, "together", marks=pytest.mark.slow)


@pytest.mark.parametrize(("count", "name"), list(cases()))
def test_masked_lm_is_that_of_one_device(on_one_device, name, count):
    data = masked_lm_data()
    one, logged = on_one_device(DebertaMaskedLM, data, name)
    other, history = train(DebertaMaskedLM, data, mirrored(count), **FITS[name])
    check_same(one, other, data)
    for key in ("loss", "accuracy", "gradient_norm", "skipped_updates"):
        np.testing.assert_allclose(history[key], logged[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["distributed dataset", "whole batches"])
def test_a_classifier_is_that_of_one_device(reader):
    data = classifier_data()
    one, logged = train(DebertaTextClassifier, data, num_classes=2)
    strategy = mirrored(2)
    given = data
    if reader == "distributed dataset":
        given = strategy.distribute_datasets_from_function(
            lambda context: data.rebatch(BATCH // 2, drop_remainder=True)
        )
    other, history = train(DebertaTextClassifier, given, strategy, num_classes=2)
    check_same(one, other, data)
    np.testing.assert_allclose(history["loss"], logged["loss"], rtol=1e-5)


def test_evaluation_takes_a_batch_that_does_not_divide():
    data = masked_lm_data(1)
    uneven = data.unbatch().take(5).batch(3)
    task, _ = train(DebertaMaskedLM, data, mirrored(2))
    alone = DebertaMaskedLM(make_backbone(num_layers=1))
    alone.compile(make_optimizer())
    for mine, theirs in zip(task.weights, alone.weights, strict=True):
        theirs.assign(mine)
    found = task.evaluate(uneven, return_dict=True, verbose=0)
    expected = alone.evaluate(uneven, return_dict=True, verbose=0)
    assert found.keys() == expected.keys() == {"loss", "accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    np.testing.assert_allclose(
        task.predict(uneven, verbose=0), alone.predict(uneven, verbose=0), atol=1e-5
    )


def test_the_scores_of_an_evaluation_are_means_over_masked_tokens():
    data = masked_lm_data(1).unbatch().batch(3)
    task = DebertaMaskedLM(make_backbone())
    task.compile(make_optimizer())
    total = right = count = 0
    for inputs, labels, weights in data:
        logits = task(inputs, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        total, count = total + np.sum(losses * weights), count + np.sum(weights)
        right += np.sum((np.argmax(logits, -1) == labels) * weights)
    scores = task.evaluate(data, return_dict=True, verbose=0)
    np.testing.assert_allclose(scores["loss"], total / count, rtol=1e-5)
    np.testing.assert_allclose(scores["accuracy"], right / count, rtol=1e-5)


def test_replicas_draw_other_dropout():
    strategy = mirrored(2)
    with strategy.scope():
        backbone = make_backbone(dropout=0.5)
    inputs = next(iter(masked_lm_data(1)))[0]

    @tf.function
    def embeddings():
        return strategy.run(lambda: backbone.embeddings(inputs, training=True))

    one, other = strategy.experimental_local_results(embeddings())
    assert np.mean(one.numpy() == other.numpy()) < 0.6


def test_a_batch_that_replicas_and_parts_do_not_divide_is_refused():
    with mirrored(2).scope():
        task = DebertaMaskedLM(make_backbone())
        task.compile(make_optimizer(), gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="divisible by 6: 2 replicas.*batch of 8"):
        task.fit(masked_lm_data(1))
    with pytest.raises(ValueError, match="drop_remainder=True"):
        task.fit(masked_lm_data(1).unbatch().batch(6))


def test_arrays_are_batched_so_that_they_can_be_divided():
    task = DebertaTextClassifier(make_backbone(num_layers=1), num_classes=2)
    task.compile(make_optimizer(), gradient_accumulation_steps=2)
    data = classifier_data().unbatch().batch(21).take(1)
    ((inputs, labels),) = data.as_numpy_iterator()
    task.fit(inputs, labels, batch_size=8, verbose=0)
    assert task.optimizer.iterations.numpy() == 2
    # The last 5 are held out, 16 are left to train on.
    held_out = task.fit(inputs, labels, batch_size=8, validation_split=0.2, verbose=0)
    assert "val_loss" in held_out.history
    assert task.optimizer.iterations.numpy() == 4
    with pytest.raises(ValueError, match="need a tf.data.Dataset.*Received: x of type"):
        task.fit(iter([(inputs, labels)]), verbose=0)


def test_what_is_made_outside_of_the_strategy_is_refused():
    strategy = mirrored(2)
    task = DebertaMaskedLM(make_backbone())
    optimizer = make_optimizer()
    with strategy.scope():
        with pytest.raises(ValueError, match="model was made outside"):
            task.fit(masked_lm_data(1))
        inside = DebertaMaskedLM(make_backbone())
    with pytest.raises(ValueError, match="optimizer was made outside"):
        inside.compile(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_that_is_not_finite_is_left_out(count):
    strategy = mirrored(2) if count == 2 else None
    data = masked_lm_data(3)

    def spoil(number, sample):
        inputs, labels, weights = sample
        # One weight of one row: one replica alone sees it.
        spoilt = weights + tf.where(number == 1, np.nan, 0.0) * tf.one_hot(0, BATCH)[
            :, None
        ] * tf.one_hot(0, PLACES)
        return inputs, labels, spoilt

    first, _ = train(DebertaMaskedLM, data.take(1), strategy)
    spoilt = data.enumerate().map(spoil).take(2)
    task, history = train(DebertaMaskedLM, spoilt, strategy)
    assert history["skipped_updates"] == [1.0]
    assert task.optimizer.iterations.numpy() == 2
    for mine, theirs in zip(task.variables, first.variables, strict=True):
        if "seed_generator" not in mine.path:
            np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
    moments, before = task.optimizer.variables, first.optimizer.variables
    for mine, theirs in zip(moments[2:], before[2:], strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


# 8 bits of mantissa, halved batches summed in another order.
BFLOAT16_BOUND = 2e-3


@pytest.mark.slow
def test_bfloat16_is_near_that_of_one_device():
    data = masked_lm_data()
    backbone = {"dtype": "mixed_bfloat16"}
    one, _ = train(DebertaMaskedLM, data, backbone=backbone)
    other, _ = train(DebertaMaskedLM, data, mirrored(2), backbone=backbone)
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=BFLOAT16_BOUND)
