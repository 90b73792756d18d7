import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.replaced_token_training import (
    discriminator_loss,
    replace_tokens,
)
from tests.mirrored import mirrored
from tests.test_replaced_token import MASK_ID, make_detection
from tests.test_strategies import (
    BATCH,
    LENGTH,
    make_optimizer,
    masked_lm_data,
)

LAMBDA = 50.0


def compiled(detection, rate=1e-3, **kwargs):
    optimizers = [keras.optimizers.Adam(rate)]
    if detection.embedding_sharing != "es" and kwargs.get("decoupled", True):
        optimizers.append(keras.optimizers.Adam(rate))
    detection.compile(*optimizers, **kwargs)
    return detection


def a_batch(masked=True):
    """(inputs, mask_ids, mask_weights), the masked tokens masked in the row."""
    inputs, mask_ids, weights = next(iter(masked_lm_data(1)))
    masks = tf.fill(mask_ids.shape, MASK_ID)
    row = replace_tokens(inputs["token_ids"], inputs["mask_positions"], masks)
    return {**inputs, "token_ids": row}, mask_ids, weights


def test_tokens_are_drawn_from_the_softmax():
    detection = make_detection()
    logits = tf.constant([[[2.0, 0.0, 1.0, -30.0] + [-40.0] * 100]])
    logits = tf.tile(logits, [40, 500, 1])
    ids = detection.sample(logits, detection.sampling_seed.next())
    assert ids.shape == (40, 500)
    counts = np.bincount(ids.numpy().ravel(), minlength=104)
    probabilities = tf.nn.softmax(logits[0, 0]).numpy()
    spread = np.sqrt(ids.numpy().size * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - ids.numpy().size * probabilities) <= 5 * spread + 1)
    again = detection.sample(logits, detection.sampling_seed.next())
    assert np.mean(again == ids) < 0.7


def test_rows_that_no_token_has_are_never_drawn():
    detection = make_detection(num_tokens=100)
    logits = tf.zeros((8, 50, 104)) + tf.concat([tf.zeros(100), tf.fill([4], 9.0)], 0)
    ids = detection.sample(logits, detection.sampling_seed.next())
    assert tf.reduce_max(ids) == 99
    detection = make_detection()
    assert tf.reduce_max(detection.sample(logits, detection.sampling_seed.next())) > 99


@pytest.mark.parametrize("num_tokens", [0, 105])
def test_tokens_without_rows_are_refused(num_tokens):
    with pytest.raises(ValueError, match=r"num_tokens must be in \[1, 104\]"):
        make_detection(num_tokens=num_tokens)


def test_a_token_is_replaced_where_it_was_masked_and_another_drawn():
    detection = make_detection()
    inputs, mask_ids, weights = a_batch()
    # Every second draw is right.
    right = np.arange(mask_ids.shape[1]) % 2 == 0
    ids = tf.where(right, mask_ids, (mask_ids + 1) % 100)
    _, labels, counts = detection.detect((inputs, mask_ids, weights), ids, False)
    expected = np.zeros((BATCH, LENGTH))
    for row, places in enumerate(inputs["mask_positions"].numpy()):
        for place, position in enumerate(places):
            if weights[row, place] > 0 and not right[place]:
                expected[row, position] = 1
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(counts, inputs["padding_mask"])


def test_the_logs_tell_of_both_networks():
    detection = compiled(make_detection())
    batch = a_batch()
    dataset = tf.data.Dataset.from_tensors(batch)
    found = detection.evaluate(dataset, return_dict=True, verbose=0)
    logits = detection.generator(batch[0])
    losses = keras.losses.sparse_categorical_crossentropy(batch[1], logits, True)
    count = tf.reduce_sum(batch[2])
    loss = tf.reduce_sum(losses * batch[2])
    ids = detection.sample(logits, (0, 0))
    outputs = detection.detect(batch, ids, training=False)
    scores, labels, weights = (value.numpy().ravel() for value in outputs)
    real = weights > 0
    errors, tokens = discriminator_loss(*outputs)
    higher = scores[real & (labels > 0)][:, None] > scores[real & (labels == 0)]
    expected = {
        "generator_loss": loss / count,
        "generator_accuracy": np.sum(
            (tf.argmax(logits, -1) == tf.cast(batch[1], "int64")) * batch[2].numpy()
        )
        / count,
        "discriminator_loss": errors / tokens,
        "discriminator_accuracy": np.mean((scores > 0)[real] == labels[real]),
        "replaced_rate": np.mean(labels[real]),
        "loss": loss / count + LAMBDA * errors / tokens,
    }
    auc = found.pop("discriminator_auc")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    # By 200 thresholds.
    np.testing.assert_allclose(auc, np.mean(higher), atol=0.02)
    again = detection.evaluate(dataset, return_dict=True, verbose=0)
    assert again == {**found, "discriminator_auc": auc}


def is_moved(variables, fit):
    before = [v.numpy() for v in variables]
    fit()
    pairs = zip(variables, before, strict=True)
    return [bool(np.any(v.numpy() != old)) for v, old in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.0, 1e-3), (1e-3, 0.0)])
def test_each_network_is_updated_at_its_own_rate(rates):
    detection = make_detection()
    detection.compile(*map(keras.optimizers.Adam, rates))
    dataset = tf.data.Dataset.from_tensors(a_batch())
    networks = (
        detection.generator.trainable_variables,
        detection.discriminator_variables,
    )
    found = is_moved(
        [*networks[0], *networks[1]], lambda: detection.fit(dataset, verbose=0)
    )
    count = len(networks[0])
    assert any(found[:count]) == (rates[0] > 0)
    assert any(found[count:]) == (rates[1] > 0)


@pytest.mark.parametrize(
    ("sharing", "decoupled"),
    [
        ("gdes", True),
        pytest.param("es", False, marks=pytest.mark.slow),
        pytest.param("gdes", False, marks=pytest.mark.slow),
        pytest.param("nes", True, marks=pytest.mark.slow),
    ],
)
def test_it_learns(sharing, decoupled):
    detection = compiled(make_detection(sharing), 3e-3, decoupled=decoupled)
    data = masked_lm_data(4).repeat(10)
    history = detection.fit(data, epochs=4, verbose=0).history
    assert history["generator_loss"][-1] < 0.75 * history["generator_loss"][0]
    assert history["discriminator_auc"][-1] > 0.7
    norms = {name for name in history if name.endswith("gradient_norm")}
    assert len(norms) == 1 + decoupled


def test_the_discriminator_of_random_tokens_learns_nothing():
    """Control of `test_it_learns`: where nothing was replaced, nothing is found."""
    detection = compiled(make_detection(), 3e-3)
    detection.sample = lambda logits, seed: tf.zeros(logits.shape[:2], "int32")
    inputs, mask_ids, weights = a_batch()
    dataset = tf.data.Dataset.from_tensors((inputs, mask_ids * 0, weights)).repeat(5)
    history = detection.fit(dataset, verbose=0).history
    assert history["replaced_rate"] == [0.0]


def drawn_by_rule(logits, seed):
    return tf.argmax(logits, -1, output_type="int32") // 2 + 3


def trained(strategy=None, sharing="gdes", parts=1, **kwargs):
    keras.utils.set_random_seed(7)
    with strategy.scope() if strategy else tf.name_scope(""):
        detection = make_detection(sharing)
        averages = {"use_ema": True, "ema_momentum": 0.9}
        both = [make_optimizer(**averages) for _ in range(2 if sharing != "es" else 1)]
        detection.compile(
            *both, global_clipnorm=0.5, gradient_accumulation_steps=parts, **kwargs
        )
    # Replicas draw other tokens; here the draw is a function of the logits.
    detection.sample = drawn_by_rule
    history = detection.fit(masked_lm_data(), verbose=0).history
    return detection, history


@pytest.mark.parametrize(
    ("sharing", "parts"),
    [
        pytest.param("gdes", 1, marks=pytest.mark.slow),
        pytest.param("gdes", 2, marks=pytest.mark.slow),
        pytest.param("es", 2, marks=pytest.mark.slow),
    ],
)
def test_two_devices_train_as_one_does(sharing, parts):
    one, logged = trained(sharing=sharing)
    other, history = trained(mirrored(2), sharing, parts)
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        if not mine.path.endswith("key/bias"):
            np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=mine.path)
    assert logged.keys() == history.keys()
    for name, value in logged.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_a_fit_the_weights_of_both_networks_are_averages(count):
    detection, _ = trained(mirrored(2) if count == 2 else None)
    for optimizer in detection.optimizers:
        averages = optimizer._model_variables_moving_average
        pairs = list(zip(optimizer._trainable_variables, averages, strict=True))
        assert len(pairs) > 20
        for weight, average in pairs:
            np.testing.assert_array_equal(weight, average, err_msg=weight.path)


@pytest.mark.slow
def test_xla_trains_as_it_is_without():
    one, _ = trained(jit_compile=False)
    other, _ = trained(jit_compile=True)
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        if not mine.path.endswith("key/bias"):
            np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=mine.path)


def test_how_it_is_compiled_survives_its_config():
    one, other = compiled(make_detection(), discriminator_weight=10.0), make_detection()
    one.build_optimizers()
    other.compile_from_config(one.get_compile_config())
    assert other.discriminator_weight == 10.0
    assert other.decoupled
    assert [o.get_config() for o in other.optimizers] == [
        o.get_config() for o in one.optimizers
    ]


def test_what_can_not_be_trained_is_refused():
    with pytest.raises(ValueError, match="'es' needs decoupled=False"):
        make_detection("es").compile(decoupled=True)
    with pytest.raises(ValueError, match="pass discriminator_optimizer too"):
        make_detection().compile(keras.optimizers.Adam())
    with pytest.raises(ValueError, match="an optimizer each"):
        same = keras.optimizers.Adam()
        make_detection().compile(same, same)
    with pytest.raises(ValueError, match="fixed. Received: loss"):
        make_detection().compile(loss="mse")


@pytest.mark.parametrize("sharing", ["gdes", "es"])
def test_both_losses_are_scaled_for_float16(sharing):
    detection = compiled(
        make_detection(dtype="mixed_float16", embedding_sharing=sharing)
    )
    scaling = keras.optimizers.LossScaleOptimizer
    assert [type(one) for one in detection.optimizers] == [scaling] * (
        1 if sharing == "es" else 2
    )


def test_tiny_gradients_reach_the_discriminator_in_float16():
    detection = make_detection(dtype="mixed_float16")
    # Without a scale they are below the least float16, 6e-8.
    compiled(detection, discriminator_weight=1e-5)
    before = [np.array(one) for one in detection.discriminator_variables]
    detection.train_on_batch(*a_batch())
    after = detection.discriminator_variables
    moved = [np.any(x != y) for x, y in zip(before, after, strict=True)]
    assert np.mean(moved) > 0.9
