"""What happens between the steps of `fit`: log, evaluate, save, stop."""

import json
import math
import os
import time

import keras

from deberta_tf import files, updates
from trainers import devices
from trainers.state import TrainingDiverged

SCORES_FILE = "scores.json"


class StepCallback(keras.callbacks.Callback):
    """Calls `on_step(step, logs)` after each step, counted over all runs from 1."""

    def __init__(self, first_step):
        super().__init__()
        self.first_step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self.on_step(self.first_step + batch + 1, logs)


class StopOnNonFinite(StepCallback):
    """Tells of updates that were left out, and stops when there are many in a row.

    The model leaves out updates whose gradients are not finite, so one bad batch does
    no harm. Raises TrainingDiverged at the `patience`-th in a row, or if a loss is not
    finite although its gradients are.
    """

    def __init__(self, first_step, state=None, patience=10):
        super().__init__(first_step)
        self.state = state
        self.patience = patience
        self._skipped = 0
        self._in_a_row = 0

    def on_step(self, step, logs):
        loss, skipped = float(logs["loss"]), float(logs["skipped_updates"])
        # Both count from the last line on.
        was_skipped = skipped > (self._skipped if skipped >= self._skipped else 0)
        self._skipped = skipped
        self._in_a_row = self._in_a_row + 1 if was_skipped else 0
        if self._in_a_row >= self.patience or not (was_skipped or math.isfinite(loss)):
            remains = f". {self.state.last_good()}" if self.state else ""
            raise TrainingDiverged(
                f"the loss is {loss} at step {step}, {self._in_a_row} updates in a row "
                f"were not finite{remains}"
            )
        if was_skipped:
            print(f"step {step}: the gradients are not finite; no update", flush=True)
        if not math.isfinite(loss):
            # Else no later loss of this line would be a number either.
            self.model.reset_metrics()
            self._skipped = 0


class Spikes(StepCallback):
    """Tells of a step whose loss stands far above those before it.

    Far is `deviations` times the mean distance of a loss from the running mean; both
    are averages over about 50 steps.
    """

    def __init__(self, first_step, scalars, deviations=8.0):
        super().__init__(first_step)
        self.scalars = scalars
        self.deviations = deviations
        self._sum = self._count = self._resets = 0
        self._mean = self._distance = None
        self._seen = 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.num_metric_resets != self._resets:
            self._resets = self.model.num_metric_resets
            self._sum = self._count = 0

    def on_step(self, step, logs):
        # What is logged is the mean since metrics were reset.
        mean = float(logs["loss"])
        self._count += 1
        loss = mean * self._count - self._sum
        self._sum = mean * self._count
        if not math.isfinite(loss):
            return
        if self._seen >= 20 and loss - self._mean > self.deviations * self._distance:
            print(
                f"step {step}: the loss is {loss:.4f}, a spike over {self._mean:.4f}",
                flush=True,
            )
            self.scalars.write(step, {"train/loss_spike": loss})
        self._take_in(loss)

    def _take_in(self, loss):
        self._seen += 1
        if self._mean is None:
            self._mean, self._distance = loss, 0.0
        share = max(0.02, 1 / self._seen)
        self._distance += share * (abs(loss - self._mean) - self._distance)
        self._mean += share * (loss - self._mean)


class Progress(StepCallback):
    """A line every `log_every` steps: mean loss since the last, rate, speed, ETA.

    `derive` is a callable from the step's logs and the seconds of a step to more
    scalars, `examples_per_second` among them.

    Speed is that of steps alone: neither the first one, which traces and compiles,
    nor evaluations and checkpoints count. The first line of a run that goes on from a
    step between two lines is the mean of the steps since that one.
    """

    def __init__(self, first_step, total_steps, log_every, schedule, scalars, derive):
        super().__init__(first_step)
        self.total_steps = total_steps
        self.derive = derive
        self.log_every = log_every
        self.schedule = schedule
        self.scalars = scalars
        self._durations = []

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_step(self, step, logs):
        self._durations.append(time.perf_counter() - self._began)
        if step == self.first_step + 1:
            print(f"first step: {self._durations[0]:.1f} s, compilation included")
        if step % self.log_every == 0 or step == self.total_steps:
            self._report(step, logs)
            # The loss that Keras logs is the mean since this.
            self.model.reset_metrics()
            self._durations = []
        elif step == self.first_step + 1:
            self._durations = []

    def _report(self, step, logs):
        seconds = sum(self._durations) / len(self._durations)
        values = {name: float(value) for name, value in logs.items()}
        values["learning_rate"] = float(self.schedule(step - 1))
        values |= self.derive(values, seconds)
        left = duration(seconds * (self.total_steps - step))
        print(
            f"step {step}/{self.total_steps}  loss {values['loss']:.4f}  "
            f"learning rate {values['learning_rate']:.2e}  "
            f"{values['examples_per_second']:,.1f} examples/s  {left} left",
            flush=True,
        )
        self.scalars.write(step, {f"train/{k}": v for k, v in values.items()})


class Evaluate(StepCallback):
    """Scores the model every `every` steps and at the end, and keeps the best.

    The best so far is the preset `preset_dir`, its scores are in `scores.json` there.
    A signal to stop ends an evaluation, of a run that is one process, or it is not
    begun: the run that goes on makes it up.

    Args:
        first_step, total_steps, every: ints.
        evaluate: callable from the task to {name: score}.
        best_by: str. The score that decides.
        larger_is_better: bool.
        name: str. What the scores are of, such as "dev".
        preset_dir: str.
        scalars: `Scalars`.
        state: `TrainingState`.
        interruption: `Interruption`.
    """

    def __init__(
        self,
        first_step,
        total_steps,
        every,
        evaluate,
        best_by,
        larger_is_better,
        name,
        preset_dir,
        scalars,
        state,
        interruption,
    ):
        super().__init__(first_step)
        self.total_steps = total_steps
        self.every = every
        self.evaluate = evaluate
        self.best_by = best_by
        self.sign = 1 if larger_is_better else -1
        self.name = name
        self.preset_dir = preset_dir
        self.scalars = scalars
        self.state = state
        self.interruption = interruption
        # Without a checkpoint, a preset there is of another run.
        best = read_scores(preset_dir) if first_step else None
        self.best = -math.inf if best is None else self.sign * best[best_by]

    def make_up(self, task):
        """The evaluation of the step that a run goes on from, if it was stopped there
        before it had it."""
        self.set_model(task)
        step = self.first_step
        if step and not self.scalars.has(step, f"{self.name}/{self.best_by}"):
            self.on_step(step)

    def on_step(self, step, logs=None):
        is_due = step % self.every == 0 or step == self.total_steps
        if not is_due or self.interruption.signal is not None:
            return
        with updates.averaged(self.model.optimizers):
            self._evaluate(step)

    def _evaluate(self, step):
        began = time.perf_counter()
        scores = self.interruption.ends(self.evaluate, self.model)
        if scores is None:
            return
        better = self.sign * scores[self.best_by] > self.best
        if better:
            self.state.require_finite(step)
            self.best = self.sign * scores[self.best_by]
            if devices.is_chief():
                save_preset(self.model, self.preset_dir, {"step": step, **scores})
        print(
            f"step {step}/{self.total_steps}  {self.name}: {in_words(scores)}  "
            f"({time.perf_counter() - began:.1f} s{', best so far' if better else ''})",
            flush=True,
        )
        named = {f"{self.name}/{name}": value for name, value in scores.items()}
        self.scalars.write(step, named)


class Checkpoint(StepCallback):
    """Saves the training state every `every` steps, at the end, and when told to stop.

    When it stops, no process of the run goes before the state is on the disk.

    Args:
        first_step, total_steps, every: ints.
        state: `TrainingState`.
        interruption: `Interruption`.
    """

    def __init__(self, first_step, total_steps, every, state, interruption):
        super().__init__(first_step)
        self.total_steps = total_steps
        self.every = every
        self.state = state
        self.interruption = interruption

    def on_step(self, step, logs):
        stop = self.interruption.signal is not None
        if stop or step % self.every == 0 or step == self.total_steps:
            self.state.save(step)
        if stop or step == self.total_steps:
            self.state.wait()
        if stop:
            self.interruption.meet()
            print(f"saved at step {step}; the same command goes on from there")
            self.model.stop_training = True


class Meeting(StepCallback):
    """After each step, the processes of a run agree on whether to stop."""

    def __init__(self, first_step, interruption):
        super().__init__(first_step)
        self.interruption = interruption

    def on_step(self, step, logs):
        self.interruption.meet()


def save_preset(task, preset_dir, scores):
    """Saves a task as a preset with `scores.json` in it, both or neither."""
    with files.atomic_directory(preset_dir) as folder:
        task.save_to_preset(folder)
        files.write_json(os.path.join(folder, SCORES_FILE), scores)


def read_scores(preset_dir):
    """The `scores.json` of a preset, or None."""
    path = os.path.join(preset_dir, SCORES_FILE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def in_words(scores):
    """{"macro_f1": 0.5} as "macro F1 0.5000", for a line of output."""
    return ", ".join(
        f"{name.replace('_', ' ').replace('f1', 'F1')} {value:.4f}"
        for name, value in scores.items()
    )


def exponential(loss):
    """e to a loss; infinity where that is no number of a computer."""
    return math.exp(loss) if loss < 700 else math.inf


def duration(seconds):
    """Time as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
