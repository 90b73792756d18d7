"""Scale-invariant fine-tuning on every task, and on any number of devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf.sift import ScaleInvariantFineTuning
from tests.mirrored import mirrored
from tests.small_models import make_backbone, randomize
from tests.test_strategies import (
    classifier_data,
    make_optimizer,
)
from tests.test_token_tasks import TASKS, make_inputs

ALL_TASKS = {
    **TASKS,
    "classifier": lambda backbone: deberta_tf.DebertaTextClassifier(backbone, 3),
    "regression": lambda backbone: deberta_tf.DebertaTextClassifier(backbone, 1),
    "masked LM": deberta_tf.DebertaMaskedLM,
}
# Large enough to be seen, and to be told from rounding.
LARGE = {"step_size": 0.1, "initial_scale": 0.1}


def make_classifier(weight_seed=1, **kwargs):
    keras.utils.set_random_seed(weight_seed)
    task = deberta_tf.DebertaTextClassifier(make_backbone(num_layers=1, **kwargs), 2)
    task.compile(make_optimizer())
    return task


def by_rule(model):
    """Gives each token the same first perturbation on any device."""

    def perturbation(inputs):
        ids = tf.cast(inputs["token_ids"], tf.float32)[..., None]
        return 0.1 * tf.sin(ids * tf.range(1.0, 17.0))

    model.initial_perturbation = perturbation
    return model


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def divergence_by_hand(name, one, other, inputs):
    """The sum of the divergences both ways, distribution by distribution."""
    one, other = np.array(one, np.float64), np.array(other, np.float64)
    pairs = []
    for row in range(len(one)):
        if name in ("classifier", "choice", "regression", "pair"):
            pairs.append((one[row], other[row]))
            continue
        real = np.flatnonzero(inputs["padding_mask"][row])
        if name == "token":
            pairs += [(one[row, i], other[row, i]) for i in real]
        if name == "masked LM":
            places = np.flatnonzero(inputs["mask_positions"][row])
            pairs += [(one[row, i], other[row, i]) for i in places]
        if name == "span":
            pairs += [(one[row, real, end], other[row, real, end]) for end in (0, 1)]
        if name == "entity":
            there = np.flatnonzero(np.any(inputs["entity_positions"][row], axis=-1))
            pairs += [
                (np.array([one[row, i], 0.0]), np.array([other[row, i], 0.0]))
                for i in there
            ]
    if name == "regression":
        return sum(float((a - b) ** 2) for (a,), (b,) in pairs)
    total = 0.0
    for a, b in pairs:
        p, q = softmax(a), softmax(b)
        total -= np.sum(p * np.log(q)) + np.sum(q * np.log(p))
    return total


@pytest.mark.parametrize("name", ALL_TASKS)
def test_what_is_compared_are_the_distributions_of_the_outputs(name):
    task = ALL_TASKS[name](make_backbone())
    randomize(task)
    inputs = make_inputs(name)
    if name == "masked LM":
        inputs["mask_positions"] = np.array([[2, 5, 7], [1, 0, 0]], "int32")
    inputs = {key: tf.constant(value) for key, value in inputs.items()}
    task.compile(keras.optimizers.SGD(0.1))
    model = ScaleInvariantFineTuning(task, **LARGE)
    seen = []

    def spy(name, outputs, target, inputs):
        seen.append((outputs, target))
        return ScaleInvariantFineTuning._divergence(
            model, name, outputs, target, inputs
        )

    model._divergence = spy
    with tf.GradientTape() as tape:
        outputs, found = model.compare(inputs)
    expected = [divergence_by_hand(name, *pair, inputs) for pair in seen]
    assert len(expected) == 2
    np.testing.assert_allclose(found, expected[1], rtol=1e-4)
    np.testing.assert_array_equal(outputs, seen[1][1])
    gradients = tape.gradient(found, [v.value for v in task.trainable_variables])
    reached = [
        g is not None and bool(np.any(tf.convert_to_tensor(g))) for g in gradients
    ]
    # Of the keys' biases a softmax over keys knows nothing; of a span's biases neither.
    assert sum(reached) >= 0.8 * len(reached)
    # The ascent goes where outputs change: less the entropies of both.
    start, end = (
        divergence_by_hand(name, one, other, inputs)
        - divergence_by_hand(name, one, one, inputs) / 2
        - divergence_by_hand(name, other, other, inputs) / 2
        for one, other in seen
    )
    assert end > start > 0


def test_perturbations_differ_by_step_and_replica_and_come_again():
    with mirrored(2).scope():
        model = ScaleInvariantFineTuning(make_classifier(), initial_scale=0.5)
    inputs = {"token_ids": tf.ones([3, 7], tf.int32)}

    def draw():
        found = mirrored(2).run(lambda: model.initial_perturbation(inputs))
        return [np.array(x) for x in mirrored(2).experimental_local_results(found)]

    first, again = draw(), draw()
    np.testing.assert_array_equal(first, again)
    # Another part of the same batch, and the same rows in another step.
    inputs = {"token_ids": tf.range(21)[:, None] * tf.ones([1, 1], tf.int32)}
    inputs["token_ids"] = tf.reshape(inputs["token_ids"], [3, 7])
    part = draw()
    model.task.optimizer.iterations.assign(1)
    drawn = [*first, *part, *draw()]
    for one in range(6):
        assert drawn[one].shape == (3, 7, 16)
        assert np.abs(drawn[one]).max() == 1.0
        assert 0.43 < drawn[one].std() < 0.53
        for two in range(one):
            assert abs(np.corrcoef(drawn[one].ravel(), drawn[two].ravel())[0, 1]) < 0.2


def test_the_scale_of_a_loss_does_not_move_the_perturbation():
    inputs = next(iter(classifier_data()))[0]
    scales, moves = [], []
    for scale in (None, 2.0**10):
        task = make_classifier()
        optimizer = make_optimizer()
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
        task.compile(optimizer)
        model = by_rule(ScaleInvariantFineTuning(task, **LARGE))
        scales.append(float(optimizer.scale_loss(1.0)))
        target = task(inputs, training=True, perturb=tf.identity)
        moves.append(model.ascend(inputs, target) - model.initial_perturbation(inputs))
    assert scales == [1.0, 2.0**10]
    assert np.any(moves[0])
    np.testing.assert_allclose(*moves, atol=1e-3 * np.abs(moves[0]).max())


def test_the_ascent_of_many_rows_does_not_overflow_in_float16():
    """As a sum over rows, times a scale that a mean is content with, it would."""
    backbone = make_backbone(num_layers=1, dtype="mixed_float16")
    task = deberta_tf.DebertaTextClassifier(backbone, 2)
    randomize(task)
    task.head.logits.kernel.assign(task.head.logits.kernel * 30)
    task.compile(keras.optimizers.LossScaleOptimizer(make_optimizer(), 2.0**14))
    data = classifier_data().unbatch().batch(160)
    inputs = next(iter(data))[0]
    model = ScaleInvariantFineTuning(task, **LARGE)
    target = task(inputs, training=True, perturb=tf.identity)
    assert np.any(model.ascend(inputs, target) - model.initial_perturbation(inputs))


def test_the_clean_pass_is_run_again_where_it_is_wanted():
    inputs = next(iter(classifier_data()))[0]
    counts = []
    for recompute in (False, True):
        model = ScaleInvariantFineTuning(make_classifier(), recompute=recompute)

        def gradients(inputs, model=model):
            with tf.GradientTape() as tape:
                outputs, divergence = model.compare(inputs)
                loss = tf.reduce_sum(outputs) + divergence
            return tape.gradient(
                loss, [v.value for v in model.task.trainable_variables]
            )

        graph = tf.function(gradients).get_concrete_function(inputs).graph
        kinds = [op.type[:3] for op in graph.get_operations()]
        counts.append(kinds.count("Erf"))
    # A block and the pooler have a GELU each: once more for the clean pass.
    assert counts[1] == counts[0] + 2


def test_the_paper_to_the_letter():
    task = make_classifier()
    randomize(task)
    inputs = next(iter(classifier_data()))[0]
    model = by_rule(ScaleInvariantFineTuning(task, paper=True, **LARGE))
    table = task.backbone.token_embedding.embeddings
    with tf.GradientTape() as tape:
        outputs, divergence = model.compare(inputs)
    np.testing.assert_allclose(outputs, task(inputs), atol=1e-6)
    gradient = tf.convert_to_tensor(tape.gradient(divergence, table.value))
    # That of the perturbed pass alone, the perturbation and the target fixed.
    delta = model.ascend(inputs, outputs)
    with tf.GradientTape() as tape:
        moved = task(inputs, training=True, perturb=lambda x: x + delta)
        loss = tf.reduce_sum(
            deberta_tf.sift.symmetric_kl(moved, tf.stop_gradient(outputs))
        )
    expected = tf.convert_to_tensor(tape.gradient(loss, table.value))
    assert np.any(expected)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_more_steps_climb_higher():
    task = make_classifier()
    randomize(task)
    inputs = next(iter(classifier_data()))[0]
    found = []
    for steps in (1, 3):
        model = by_rule(ScaleInvariantFineTuning(task, num_steps=steps, **LARGE))
        found.append(float(model.compare(inputs)[1]))
    assert found[1] > found[0]


def test_a_gradient_that_is_not_finite_leaves_the_perturbation():
    task = make_classifier()
    inputs = next(iter(classifier_data()))[0]
    model = by_rule(ScaleInvariantFineTuning(task, **LARGE))
    target = tf.constant(np.nan, shape=(8, 2))
    np.testing.assert_array_equal(
        model.ascend(inputs, target), model.initial_perturbation(inputs)
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"weight": 0.0}, "weight must be above 0. Received: 0.0"),
        ({"step_size": -1.0}, "step_size must be above 0. Received: -1.0"),
        ({"initial_scale": 0}, "initial_scale must be above 0. Received: 0"),
        ({"num_steps": 0}, "num_steps must be at least 1. Received: 0"),
        ({"inner_loss": "l1"}, "inner_loss must be one of symmetric_kl, kl, mse.*'l1'"),
    ],
)
def test_a_wrong_argument_is_named(argument, message):
    with pytest.raises(ValueError, match=message):
        ScaleInvariantFineTuning(make_classifier(), **argument)


def test_a_task_with_a_step_of_its_own_is_refused():
    backbone, generator = make_backbone(), make_backbone(num_layers=1)
    detection = deberta_tf.DebertaReplacedTokenDetection(
        backbone, deberta_tf.DebertaMaskedLM(generator)
    )
    with pytest.raises(ValueError, match="Received: DebertaReplacedTokenDetection"):
        ScaleInvariantFineTuning(detection)
