"""A run on a small model: log, evaluate, save, stop, go on, refuse."""

import dataclasses
import json
import math
import os
import re
import signal
import types

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from deberta_tf.distribution import StrategyFit
from deberta_tf.files import UsageError
from deberta_tf.optimization import WarmupLinear
from tests.foreign_folders import cache_hub_repository
from trainers import callbacks, run, vocabulary
from trainers.state import (
    TrainingDiverged,
    TrainingState,
    checkpoints,
    read_checkpoint,
)

FACTS = {"rows": 64}


def small_config(folder, **settings):
    settings = {"batch_size": 4, "log_every": 2, "save_every": 2, **settings}
    return run.RunConfig(model_dir=str(folder), learning_rate=0.01, **settings)


class SmallTask(StrategyFit, keras.Model):
    """Layers in a list and dropout, the two that a plain tf.train.Checkpoint loses."""

    def __init__(self, units=1):
        super().__init__()
        self.steps = [keras.layers.Embedding(20, 4), keras.layers.Dropout(0.4)]
        self.head = keras.layers.Dense(units)
        self({"token_ids": np.zeros((1, 5), "int32")})

    def call(self, inputs, training=None):
        states = inputs["token_ids"]
        for layer in self.steps:
            states = layer(states, training=training)
        return self.head(tf.reduce_mean(states, axis=1))

    def save_to_preset(self, folder):
        self.save_weights(os.path.join(folder, WEIGHTS))


WEIGHTS = "model.weights.h5"


def small_task(config, total_steps=6):
    keras.utils.set_random_seed(config.seed)
    task = SmallTask()
    schedule = run.make_schedule(config, total_steps, warmup_steps=2)
    run.compile_task(task, config, run.make_optimizer(config, schedule), loss="mse")
    return task, schedule


def batches_of(targets):
    """Inputs are drawn by n; the target of n is `targets[n % len(targets)]`."""
    targets = tf.constant(targets, tf.float32)

    def example(n):
        token_ids = tf.random.stateless_uniform([5], [1, n], 1, 20, tf.int32)
        target = targets[n % len(targets)]
        return {"token_ids": token_ids}, target

    def batches(first_step, last_step, host, num_hosts):
        numbers = tf.data.Dataset.range(4 * first_step, 4 * last_step)
        return numbers.map(example).batch(4, drop_remainder=True)

    return batches


TARGETS = np.linspace(-1, 1, 24)


def train(config, targets=TARGETS, evaluation=None, total_steps=6, facts=FACTS):
    task, schedule = small_task(config, total_steps)
    stopped_by = run.train(
        task, config, schedule, batches_of(targets), evaluation, facts
    )
    return task, stopped_by


def save(task, folder, step):
    state = TrainingState(task, str(folder))
    state.save(step)
    state.wait()


def at_step(monkeypatch, wanted, action):
    """Runs `action` when a progress line of step `wanted` could be due."""
    on_step = callbacks.Progress.on_step

    def on_step_and_action(self, step, logs):
        on_step(self, step, logs)
        if step == wanted:
            action()

    monkeypatch.setattr(callbacks.Progress, "on_step", on_step_and_action)


def crash():
    raise RuntimeError("killed")


def lines(config):
    with open(os.path.join(config.model_dir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def without_speed(records):
    speed = "train/examples_per_second"
    return [{k: v for k, v in record.items() if k != speed} for record in records]


def assert_same_weights(task, other):
    for a, b in zip(task.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_a_crashed_run_ends_with_the_weights_of_a_whole_one(tmp_path, monkeypatch):
    whole, _ = train(small_config(tmp_path / "whole"))
    config = small_config(tmp_path / "crashed")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        at_step(patch, 5, crash)
        train(config)
    resumed, stopped_by = train(config)
    assert stopped_by is None
    assert_same_weights(whole, resumed)
    assert without_speed(lines(config)) == without_speed(
        lines(small_config(tmp_path / "whole"))
    )


def test_dropout_is_part_of_the_state(tmp_path):
    config = small_config(tmp_path)
    task, _ = small_task(config)
    states = [v for v in task.variables if "seed_generator" in v.path]
    before = [state.numpy() for state in states]
    save(task, tmp_path, 3)
    for state in states:
        state.assign(state + 7)
    task.weights[0].assign(task.weights[0] + 1)
    state = TrainingState(task, str(tmp_path))
    assert (state.restore(), state.step) == (3, 3)
    assert len(states) == 1
    np.testing.assert_array_equal([state.numpy() for state in states], before)


def test_every_variable_of_model_and_optimizer_is_in_a_checkpoint(tmp_path):
    task, _ = small_task(small_config(tmp_path))
    save(task, tmp_path, 1)
    _, saved = read_checkpoint(checkpoints(tmp_path)[0])
    groups = [name.split(".")[0] for name in saved]
    # The weights, and the state of the dropout's random numbers.
    assert groups.count("model") == len(task.weights) + 1
    assert groups.count("optimizer") == len(task.optimizer.variables)


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    whole, _ = train(small_config(tmp_path / "whole"))
    config = small_config(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        _, stopped_by = train(config)
    assert stopped_by == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "saved at step 3; the same command goes on" in capsys.readouterr().out
    resumed, _ = train(config)
    assert "going on from the checkpoint of step 3" in capsys.readouterr().out
    assert_same_weights(whole, resumed)


def test_a_run_at_its_last_step_does_not_train_on(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    done, _ = train(config)
    monkeypatch.setattr(SmallTask, "fit", crash)
    again, _ = train(config)
    assert_same_weights(done, again)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    task, _ = small_task(small_config(tmp_path))
    state = TrainingState(task, str(tmp_path))
    state.save(1)
    task.weights[0].assign(task.weights[0] * math.inf)
    with pytest.raises(TrainingDiverged, match="not finite after step 2"):
        state.save(2)
    state.wait()
    assert [os.path.basename(path) for path in checkpoints(tmp_path)] == [
        "step-000000001.safetensors"
    ]


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    task, _ = small_task(small_config(tmp_path))
    save(task, tmp_path, 1)
    other = SmallTask(units=3)
    other.compile(optimizer=task.optimizer.__class__())
    message = "step-000000001.safetensors does not fit .*dense.* has shape .4, 1., not"
    with pytest.raises(UsageError, match=message):
        TrainingState(other, str(tmp_path)).restore()


def test_the_loss_of_a_line_is_the_mean_since_the_last(tmp_path):
    # Without learning, dropout and bias the prediction is 0 for a head of zeros.
    config = dataclasses.replace(small_config(tmp_path), learning_rate=0.0, log_every=3)
    task, schedule = small_task(config)
    for variable in task.head.weights:
        variable.assign(variable * 0)
    run.train(task, config, schedule, batches_of(TARGETS), None, FACTS)
    squares = (TARGETS**2).reshape(2, 12).mean(axis=1)
    losses = [line["train/loss"] for line in lines(config)]
    # 1e-6: float32 means.
    np.testing.assert_allclose(losses, squares, rtol=1e-6)


def test_the_rate_of_a_line_is_that_of_its_step(tmp_path):
    config = small_config(tmp_path)
    train(config)
    schedule = WarmupLinear(config.learning_rate, 6, 2)
    rates = [line["train/learning_rate"] for line in lines(config)]
    assert rates == [float(schedule(step)) for step in (1, 3, 5)]


def test_progress_lines_tell_step_loss_rate_speed_and_time_left(tmp_path, capsys):
    train(small_config(tmp_path))
    out = capsys.readouterr().out
    pattern = (
        r"step 4/6  loss \d+\.\d{4}  learning rate 7\.50e-03  [\d,.]+ examples/s  "
        r"\d+:\d\d left"
    )
    assert re.search(pattern, out)
    assert "first step: " in out


def test_tensorboard_has_the_scalars_of_the_jsonl(tmp_path):
    config = small_config(tmp_path)
    train(config)
    (name,) = (tmp_path / "tensorboard").iterdir()
    board = {}
    for record in tf.data.TFRecordDataset(str(name)).as_numpy_iterator():
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            number = float(tf.make_ndarray(value.tensor))
            board.setdefault(event.step, {})[value.tag] = pytest.approx(number)
    assert {line.pop("step"): line for line in lines(config)} == board


def evaluation_of(scores, every=2, larger_is_better=True):
    scores = iter(scores)
    return run.Evaluation(
        lambda task, max_batches=-1: {"accuracy": next(scores)},
        every,
        "accuracy",
        larger_is_better,
        "dev",
    )


@pytest.mark.parametrize(("larger_is_better", "step"), [(True, 4), (False, 6)])
def test_the_best_evaluated_weights_are_kept(tmp_path, larger_is_better, step):
    config = small_config(tmp_path)
    evaluation = evaluation_of([0.5, 0.7, 0.2], 2, larger_is_better)
    task, _ = train(config, evaluation=evaluation)
    preset = run.preset_dir(config)
    score = {4: 0.7, 6: 0.2}[step]
    assert callbacks.read_scores(preset) == {"step": step, "accuracy": score}
    kept = SmallTask()
    kept.load_weights(os.path.join(preset, WEIGHTS))
    same = all(
        np.array_equal(a, b) for a, b in zip(kept.weights, task.weights, strict=True)
    )
    assert same == (step == 6)
    assert [r["dev/accuracy"] for r in lines(config) if "dev/accuracy" in r] == [
        0.5,
        0.7,
        0.2,
    ]


def test_a_resumed_run_remembers_its_best(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        at_step(patch, 5, crash)
        train(config, evaluation=evaluation_of([0.9, 0.7]))
    train(config, evaluation=evaluation_of([0.8]))
    assert callbacks.read_scores(run.preset_dir(config))["step"] == 2


def test_a_last_step_off_the_beat_is_evaluated_and_saved(tmp_path):
    config = small_config(tmp_path, save_every=4)
    train(config, evaluation=evaluation_of([0.1, 0.2], every=4))
    assert callbacks.read_scores(run.preset_dir(config))["step"] == 6
    newest = checkpoints(run._checkpoint_dir(config))[0]
    assert newest.endswith("step-000000006.safetensors")


def test_a_preset_holds_the_weights_and_training_goes_on(tmp_path):
    config = small_config(tmp_path)
    task, _ = train(config, evaluation=evaluation_of([0.1, 0.2, 0.3]))
    with h5py.File(os.path.join(run.preset_dir(config), WEIGHTS)) as saved:
        assert "head" in saved
    assert task.optimizer.iterations == 6


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path):
    config = small_config(tmp_path)
    train(config)
    assert run.begin(dataclasses.replace(config, log_every=3, save_every=9)) is False
    other = dataclasses.replace(config, learning_rate=0.5, seed=3)
    message = r"\(learning_rate: 0.01 -> 0.5; seed: 1234 -> 3\)"
    with pytest.raises(UsageError, match=message):
        run.begin(other)
    with pytest.raises(UsageError, match="rows: 64 -> 65"):
        train(config, facts={"rows": 65})


def test_a_folder_without_a_checkpoint_takes_any_settings(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        at_step(patch, 1, crash)
        train(small_config(tmp_path))
    assert run.begin(small_config(tmp_path, seed=3)) is False


def test_a_finished_run_says_so(tmp_path, capsys):
    config = small_config(tmp_path)
    train(config)
    run.finish(config, {"dev": {"accuracy": 0.5}})
    capsys.readouterr()
    assert run.begin(config) is True
    assert "is finished" in capsys.readouterr().out


def test_a_dry_run_checks_a_step_and_an_evaluation_and_writes_nothing(tmp_path, capsys):
    config = small_config(tmp_path / "model", dry_run=True)
    task, _ = small_task(config)
    asked = []
    evaluation = run.Evaluation(
        lambda task, max_batches: asked.append(max_batches), 2, "accuracy", True, "dev"
    )
    run.dry_run(task, config, batches_of(TARGETS), evaluation)
    assert asked == [1]
    assert not os.path.exists(config.model_dir)
    assert "dry run: ok" in capsys.readouterr().out
    with pytest.raises(TrainingDiverged, match="step 1"):
        run.dry_run(task, config, batches_of(TARGETS * math.nan), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"precision": "float8"}, "precision must be one of float32, .*'float8'"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        small_config(tmp_path, **settings)


def test_times_read_as_clocks():
    assert callbacks.duration(59.6) == "1:00"
    assert callbacks.duration(3725) == "1:02:05"


def test_a_published_size_brings_its_tokenizer_with_its_weights(
    tmp_path, monkeypatch, sentencepiece_proto
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/spm.model").write_bytes(sentencepiece_proto)
    cache_hub_repository(
        tmp_path, "microsoft/deberta-v3-small", tmp_path / "folder", monkeypatch
    )
    config = types.SimpleNamespace(
        preset="deberta_v3_small", tokenizer=None, load_weights=True
    )
    assert vocabulary.load_tokenizer(config).proto == sentencepiece_proto
    config.load_weights = False
    with pytest.raises(ValueError, match="'deberta_v3_small' has no tokenizer"):
        vocabulary.load_tokenizer(config)
