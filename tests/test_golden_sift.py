"""Parity of scale-invariant fine-tuning with the official code (golden E1)."""

import itertools

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from deberta_tf import sift
from deberta_tf.checkpoints import names
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier
from tests.foreign_folders import read_folder, write_folder
from tests.test_golden import TOLERANCE, read_inputs

# Of the largest of an array: gradients are divided by their own largest component.
SHARE = 1e-3
# Name -> (inner_loss, step_size, initial_scale).
RUNS = {
    "default": ("symmetric_kl", 1e-4, 0.01),
    "big": ("symmetric_kl", 0.3, 0.3),
    "kl": ("kl", 0.1, 0.2),
    "mse": ("mse", 0.1, 0.2),
}
CALLS = {
    "plain": lambda function: function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


@pytest.fixture
def official(golden):
    return golden / "golden/E1_off_sift"


def read(folder, task):
    """(inputs, where tokens are)."""
    inputs, real = read_inputs(folder, "", task.backbone)
    segments = np.load(folder / "inputs.npz")["type_ids"]
    return {**inputs, "segment_ids": tf.constant(segments)}, real


class Official:
    """A run of the official code, and ours that begins at its perturbation."""

    def __init__(self, folder, run, **kwargs):
        self.arrays = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
        self.run = run
        inner_loss, step_size, scale = RUNS[run]
        self.task = DebertaTextClassifier.from_preset(str(folder))
        self.task.compile(keras.optimizers.SGD(0.0))
        self.inputs, self.real = read(folder, self.task)
        self.labels = tf.constant(self.arrays[0][f"{run}.labels"])
        self.model = ScaleInvariantFineTuning(
            self.task, 5.0, step_size, scale, inner_loss=inner_loss, **kwargs
        )
        raw = self.arrays[0][f"{run}.delta_raw"]
        delta = tf.constant(np.clip(raw, -2 * scale, 2 * scale))
        np.testing.assert_allclose(delta, self["delta0"], atol=1e-7)
        self.model.initial_perturbation = lambda inputs: delta

    def __getitem__(self, name):
        return self.arrays[1][f"{self.run}.{name}"]

    def losses(self):
        """(logits, task loss, adversarial loss, gradients of both by theirs' names)."""
        with tf.GradientTape(persistent=True) as tape:
            logits, divergence = self.model.compare(self.inputs)
            loss = self.task.loss_of(self.inputs, self.labels, logits, None, True)
            adversarial = divergence / len(self.labels)
            total = loss + 5.0 * adversarial
        values = [v.value for v in self.task.trainable_variables]
        gradients = [tape.gradient(one, values) for one in (total, adversarial)]
        return logits, loss, adversarial, gradients

    def named(self, gradients):
        """{official name: gradient, 0 where there is none}."""
        found = {}
        for v, gradient in zip(self.task.trainable_variables, gradients, strict=True):
            name = names.their_name(v.path)
            if not name.startswith(("pooler.", "classifier.")):
                name = f"deberta.{name}"
            found[name] = np.zeros(v.shape)
            if gradient is not None:
                found[name] = tf.convert_to_tensor(gradient).numpy()
        return found


def check_close(found, expected, share=SHARE):
    bound = share * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def check_norms(run, gradients, prefix=""):
    expected = dict(
        zip(run[f"{prefix}grad_names"], run[f"{prefix}grad_norms"], strict=True)
    )
    found = run.named(gradients)
    assert found.keys() <= expected.keys()
    largest = max(expected.values())
    for name, gradient in found.items():
        norm = np.linalg.norm(gradient)
        assert abs(norm - expected[name]) <= SHARE * largest, name
        if expected[name] > 0.01 * largest:
            assert abs(norm / expected[name] - 1) <= SHARE, name
    left = expected.keys() - found.keys()
    assert all(expected[name] == 0 for name in left), left


def cases():
    """(run, way, recompute); under XLA they are slow."""
    for run, way, recompute in itertools.product(RUNS, CALLS, (False, True)):
        marks = pytest.mark.slow if way == "xla" else ()
        yield pytest.param(run, way, recompute, marks=marks)


@pytest.mark.parametrize(("run", "way", "recompute"), list(cases()))
def test_losses_and_gradients_agree(official, run, way, recompute):
    run = Official(official, run, recompute=recompute)
    logits, loss, adversarial, gradients = CALLS[way](run.losses)()
    for found, name in (
        (logits, "logits"),
        (loss, "task_loss"),
        (adversarial, "adversarial_loss"),
        (loss + 5.0 * adversarial, "total_loss"),
    ):
        np.testing.assert_allclose(found, run[name], atol=TOLERANCE, rtol=1e-5)
    check_norms(run, gradients[0])
    named = run.named(gradients[0])
    whole = [name for name in run.arrays[1].files if f"{run.run}.grad." in name]
    assert len(whole) == 7
    for name in whole:
        # Kernels are the other way round there.
        check_close(named[name.removeprefix(f"{run.run}.grad.")].T, run.arrays[1][name])
    if run.run == "default":
        check_norms(run, gradients[1], "adv_only.")


@pytest.mark.parametrize("run", RUNS)
def test_the_perturbation_agrees(official, run):
    run = Official(official, run)
    target = run.task(run.inputs, training=True, perturb=tf.identity)
    np.testing.assert_allclose(target, run["logits"], atol=TOLERANCE)
    delta = run.model.ascend(run.inputs, target)
    check_close(
        (delta - run["delta0"])[run.real], (run["delta1"] - run["delta0"])[run.real]
    )
    # Padding has no gradient, so it stays.
    np.testing.assert_array_equal(delta[~run.real], run["delta0"][~run.real])
    for name, shift in (("delta0", run["delta0"]), ("delta1", delta)):
        perturbed = run.task(run.inputs, perturb=lambda x, shift=shift: x + shift)
        expected = run[f"perturbed_logits_{name}"]
        np.testing.assert_allclose(perturbed, expected, atol=TOLERANCE, rtol=1e-5)


def test_what_is_perturbed_agrees(official):
    run = Official(official, "default")
    seen = []
    run.task(run.inputs, perturb=lambda x: seen.append(x) or x)
    assert np.abs(seen[0] - run.arrays[1]["x_hat"])[run.real].max() <= TOLERANCE


def test_a_regression_is_compared_by_squares(official, tmp_path):
    # The official code takes the batch for the classes: not what a regression means.
    folder = tmp_path / "regression"
    config, tensors = read_folder(official)
    head = safetensors.numpy.load_file(official / "head_regression.safetensors")
    write_folder(folder, config, {**tensors, **head})
    inputs, outputs = (np.load(official / f"{n}.npz") for n in ("inputs", "outputs"))
    task = DebertaTextClassifier.from_preset(str(folder), num_classes=1)
    task.compile(keras.optimizers.SGD(0.0))
    model = ScaleInvariantFineTuning(task, 5.0, 0.1, 0.2)
    rows, _ = read(official, task)
    delta = tf.constant(outputs["regression.delta0"])
    np.testing.assert_array_equal(
        delta, np.clip(inputs["regression.delta_raw"], -0.4, 0.4)
    )
    model.initial_perturbation = lambda inputs: delta
    logits, divergence = model.compare(rows)
    expected = outputs["regression.logits"]
    np.testing.assert_allclose(logits[:, 0], expected, atol=TOLERANCE)
    start = task(rows, perturb=lambda x: x + delta)[:, 0]
    np.testing.assert_allclose(
        start, outputs["regression.perturbed_logits_delta0"], atol=TOLERANCE
    )
    end = model.ascend(rows, logits)
    moved = task(rows, perturb=lambda x: x + end)[:, 0]
    np.testing.assert_allclose(divergence, np.sum((moved - expected) ** 2), rtol=1e-3)
    # The ascent climbs.
    assert divergence > 1.05 * np.sum((start - expected) ** 2)
    quirk = sift.symmetric_kl(*(logits[None] for logits in (start, expected)))
    np.testing.assert_allclose(quirk[0], outputs["regression.inner_loss"], rtol=1e-5)
