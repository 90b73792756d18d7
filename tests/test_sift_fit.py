"""Scale-invariant fine-tuning under `fit`: what it logs, leaves and saves, anywhere."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf.sift import ScaleInvariantFineTuning
from tests.mirrored import mirrored
from tests.small_models import make_backbone
from tests.test_sift import ALL_TASKS, LARGE, by_rule, make_classifier
from tests.test_strategies import (
    check_same,
    classifier_data,
    make_optimizer,
    masked_lm_data,
)


@pytest.mark.parametrize(
    "compile",
    [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
    ids=["graph", "xla"],
)
def test_fit_logs_both_losses_and_learns(compile):
    task = make_classifier(dropout=0.1, attention_dropout=0.1)
    model = ScaleInvariantFineTuning(task, weight=1.0)
    model.compile(keras.optimizers.Adam(3e-3), **compile)
    history = model.fit(classifier_data(), epochs=4, verbose=0).history
    # The entropies alone: the model is untrained.
    assert history["adversarial_loss"][0] == pytest.approx(2 * np.log(2), rel=0.1)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert task.optimizer.iterations.numpy() == 80
    logs = {"loss", "accuracy", "gradient_norm", "skipped_updates", "adversarial_loss"}
    assert history.keys() == logs
    found = model.evaluate(classifier_data(), return_dict=True, verbose=0)
    assert found.keys() == {"loss", "accuracy"}


@pytest.mark.slow
def test_the_task_is_what_it_was_and_saves_nothing_of_it(tmp_path):
    task, plain = make_classifier(), make_classifier()
    variables = len(task.variables)
    ScaleInvariantFineTuning(task).fit(classifier_data().take(2), verbose=0)
    plain.fit(classifier_data().take(2), verbose=0)
    assert len(task.variables) == variables == len(plain.variables)
    for one, other in zip(task.weights, plain.weights, strict=True):
        other.assign(one)
    saved = {}
    for name, model in (("sift", task), ("plain", plain)):
        model.save_to_preset(str(tmp_path / name))
        for path in (tmp_path / name).glob("*.json"):
            config = json.loads(path.read_text("utf-8"))
            saved.setdefault(path.name, []).append(without_names(config))
        saved.setdefault("files", []).append(
            sorted(p.name for p in (tmp_path / name).iterdir())
        )
    for one, other in saved.values():
        assert one == other
    history = task.fit(classifier_data().take(1), verbose=0).history
    assert "adversarial_loss" not in history
    for one, other in zip(task.weights, plain.weights, strict=True):
        other.assign(one)
    # And it trains as before.
    optimizers = [make_optimizer() for _ in range(2)]
    for model, optimizer in zip((task, plain), optimizers, strict=True):
        model.compile(optimizer)
        history = model.fit(classifier_data().take(2), verbose=0).history
        assert "adversarial_loss" not in history
    check_same(task, plain, classifier_data())


def without_names(config):
    """A config without the numbers that Keras gives to names, and without dates."""
    if isinstance(config, dict):
        left = ("name", "date_saved")
        return {k: without_names(v) for k, v in config.items() if k not in left}
    return config


def test_it_stands_for_the_task():
    task = make_classifier()
    model = ScaleInvariantFineTuning(task)
    ((inputs, labels),) = classifier_data().take(1)
    np.testing.assert_array_equal(model(inputs), task(inputs))
    logs = model.train_on_batch(inputs, labels, return_dict=True)
    assert logs["adversarial_loss"] > 0
    assert model.optimizer is task.optimizer
    model.trainable = False
    assert not task.trainable_variables


@pytest.mark.slow
def test_a_step_is_traced_once_in_a_compilation():
    task = make_classifier()
    model = ScaleInvariantFineTuning(task)
    traced = []
    compare = model.compare
    model.__dict__["compare"] = lambda inputs: traced.append(1) or compare(inputs)
    for _ in range(3):
        model.fit(classifier_data().take(2), verbose=0)
        task.fit(classifier_data().take(1), verbose=0)
    count = len(traced)
    model.compile(make_optimizer())
    history = model.fit(classifier_data().take(2), verbose=0).history
    assert len(traced) == 2 * count
    assert history["adversarial_loss"][0] > 0


@pytest.mark.parametrize(
    ("task_class", "parts"),
    [
        pytest.param("masked LM", 2, marks=pytest.mark.slow),
        pytest.param("masked LM", 1, marks=pytest.mark.slow),
        pytest.param("classifier", 2, marks=pytest.mark.slow),
        pytest.param("classifier", 1, marks=pytest.mark.slow),
    ],
)
def test_several_devices_and_parts_train_as_one(task_class, parts):
    data = classifier_data() if task_class == "classifier" else masked_lm_data()
    trained = []
    for strategy in (None, mirrored(2)):
        keras.utils.set_random_seed(7)
        with strategy.scope() if strategy else contextlib.nullcontext():
            task = ALL_TASKS[task_class](make_backbone(num_layers=1))
            together = {"global_clipnorm": 0.05}
            if strategy:
                together["gradient_accumulation_steps"] = parts
            task.compile(make_optimizer(), **together)
        model = by_rule(ScaleInvariantFineTuning(task, step_size=0.1))
        trained.append((task, model.fit(data, verbose=0).history))
    (one, logged), (other, history) = trained
    check_same(one, other, data)
    for name, values in logged.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_mixed_precision_stays_finite_and_moves(policy):
    backbone = make_backbone(num_layers=1, dropout=0.1, dtype=policy)
    task = deberta_tf.DebertaTextClassifier(backbone, 2)
    optimizer = make_optimizer()
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**12)
    task.compile(optimizer)
    inputs = next(iter(classifier_data()))[0]
    large = ScaleInvariantFineTuning(task, **LARGE)
    target = task(inputs, training=True, perturb=tf.identity)
    assert np.any(large.ascend(inputs, target) - large.initial_perturbation(inputs))
    before = [np.array(weight) for weight in task.weights]
    history = ScaleInvariantFineTuning(task).fit(classifier_data(), verbose=0).history
    assert np.isfinite(history["adversarial_loss"]).all()
    assert history["skipped_updates"] == [0.0]
    after = [np.array(weight) for weight in task.weights]
    assert all(np.isfinite(weight).all() for weight in after)
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))


@pytest.mark.slow
def test_running_the_clean_pass_again_changes_nothing():
    trained = []
    for recompute in (False, True):
        task = make_classifier(dropout=0.2, attention_dropout=0.2)
        model = ScaleInvariantFineTuning(task, recompute=recompute, **LARGE)
        model.fit(classifier_data(), verbose=0)
        trained.append(task)
    check_same(*trained, classifier_data(), atol=1e-6)
