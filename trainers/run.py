"""What the trainers share: settings of a run, optimizer, `fit` over all its steps."""

import dataclasses
import functools
import json
import os
import signal
import time

import tensorflow as tf

from deberta_tf import files
from deberta_tf.optimization import WarmupLinear, adafactor, adamw
from trainers import callbacks, devices
from trainers.config import (
    as_json,
    changed_settings,
    check_at_least,
    check_choice,
    check_share,
)
from trainers.interruption import Interruption
from trainers.scalars import Scalars
from trainers.state import TrainingState, checkpoints

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
PRESET = "preset"
MAY_CHANGE = ("model_dir", "log_every", "save_every", "dry_run", "num_replicas", "tpu")
OPTIMIZERS = ("adamw", "adafactor")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that all trainers have.

    A run that was interrupted goes on when the same command is given again. Of its
    settings only those in `MAY_CHANGE` may then be others.
    """

    model_dir: str
    """Folder of the run: checkpoints, metrics.jsonl, TensorBoard, the preset."""
    batch_size: int = 32
    """Examples a step, on all devices together."""
    gradient_accumulation_steps: int = 1
    """Parts, one after the other, that each device takes its share of a batch in: less
    memory, the same result."""
    num_replicas: int | None = None
    """Devices to train on; none: all GPUs, or the one CPU. Without a GPU, so many parts
    of the CPU. Several hosts are told of by TF_CONFIG."""
    tpu: str | None = None
    """Name of a TPU to train on, "local" on a TPU VM; none: no TPU."""
    optimizer: str = "adamw"
    """adamw, as in the papers, with 8 bytes of state a parameter; or adafactor, with
    next to none."""
    learning_rate: float = 1e-4
    """Peak of the learning rate, reached after the warm-up; it then falls to 0."""
    official_schedule: bool = False
    """Fall along the line from the peak at step 0, as the official code does, with a
    jump where the warm-up ends."""
    weight_decay: float = 0.01
    """Decoupled decay of all parameters but biases and layer norms."""
    clip_norm: float | None = 1.0
    """Longest gradient, over all parameters together; none: no clipping."""
    average_decay: float | None = None
    """Decay a step of a moving average of the weights, which is what is evaluated and
    kept; none: the weights themselves are."""
    adam_beta_1: float = 0.9
    """Decay of AdamW's first moment, a step."""
    adam_beta_2: float = 0.999
    """Decay of AdamW's second moment, a step."""
    adam_epsilon: float = 1e-6
    """Added to the root of AdamW's second moment."""
    seed: int = 1234
    """Of initial weights, order of the data, dropout and masks."""
    precision: str = "float32"
    """Keras dtype policy: float32, mixed_bfloat16 or mixed_float16."""
    gradient_checkpointing: bool = False
    """Compute each block once more in the backward pass: less memory, more time."""
    scan_layers: bool = False
    """Run the blocks as one loop: a program that compiles fast, and runs slower."""
    jit_compile: bool = False
    """Compile the step with XLA."""
    log_every: int = 50
    """Steps between progress lines."""
    save_every: int = 500
    """Steps between checkpoints."""
    dry_run: bool = False
    """Check everything, run one step and one evaluation batch, write nothing."""

    def __post_init__(self):
        check_at_least(self, 1, "batch_size", "log_every", "save_every")
        check_at_least(self, 1, "gradient_accumulation_steps", "num_replicas")
        check_share(self, "average_decay")
        check_at_least(self, 0, "learning_rate", "weight_decay", "clip_norm", "seed")
        check_choice(self, "optimizer", OPTIMIZERS)
        check_choice(self, "precision", PRECISIONS)


def begin(config):
    """Prints the settings; returns whether the run is finished already.

    Nothing is computed: a strategy of several hosts is made before anything is.

    Raises:
        UsageError: if `model_dir` holds a run of other settings.
    """
    print(json.dumps(as_json(config), indent=2), flush=True)
    finished = is_finished(config)
    if finished or _has_checkpoint(config):
        saved = _read_json(config, CONFIG_FILE)["settings"]
        _refuse_changes(config, changed_settings(saved, config, MAY_CHANGE))
    if finished and not config.dry_run:
        results = json.dumps(read_results(config), indent=2)
        print(f"{config.model_dir} is finished; its results:\n{results}")
    return finished and not config.dry_run


def is_finished(config):
    """Whether the run of these settings is through."""
    return os.path.exists(os.path.join(config.model_dir, RESULTS_FILE))


def read_results(config):
    """What `finish` wrote."""
    return _read_json(config, RESULTS_FILE)


def make_schedule(config, total_steps, warmup_steps):
    """The learning rate of a run.

    Raises:
        ValueError: if the warm-up is not shorter than the training.
    """
    return WarmupLinear(
        config.learning_rate,
        total_steps,
        warmup_steps,
        continuous=not config.official_schedule,
    )


def make_optimizer(config, schedule, rates=()):
    """The optimizer of a run, with its settings; `rates` as `adamw` takes them."""
    if config.optimizer == "adafactor":
        return adafactor(schedule, config.weight_decay, config.average_decay, rates)
    return adamw(
        schedule,
        config.weight_decay,
        config.adam_beta_1,
        config.adam_beta_2,
        config.adam_epsilon,
        average_decay=config.average_decay,
        rates=rates,
    )


def compile_task(task, config, *optimizers, **kwargs):
    """Compiles a task for `fit`: what all tasks have in common."""
    task.compile(
        *optimizers,
        global_clipnorm=config.clip_norm,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # TPUs compile all of a step in any case.
        jit_compile=config.jit_compile and config.tpu is None,
        **kwargs,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When and by what a run is scored.

    Attributes:
        evaluate: callable from the task, and `max_batches` to stop early, to
            {name: score}.
        every: int, steps.
        best_by: str. The score that decides which weights are kept.
        larger_is_better: bool.
        name: str. The data, such as "dev".
    """

    evaluate: callable
    every: int
    best_by: str
    larger_is_better: bool
    name: str


def dry_run(task, config, batches, evaluation):
    """One training step and one evaluation batch; raises what a run would raise."""
    strategy = task.distribute_strategy
    spec = batches(0, 1, 0, 1).element_spec[0]
    print(f"batch: { ({name: tuple(one.shape) for name, one in spec.items()}) }")
    watch = [callbacks.StopOnNonFinite(0, patience=1)]
    dataset = devices.distribute(
        strategy, functools.partial(batches, 0, 1), config.batch_size
    )
    task.fit(dataset, callbacks=watch, steps_per_epoch=1, shuffle=False, verbose=0)
    if evaluation is not None:
        evaluation.evaluate(task, max_batches=1)
    print("dry run: ok")


def train(task, config, schedule, batches, evaluation, data_facts, derive=None):
    """Runs `fit` over the steps that remain, as one epoch.

    Args:
        task: as `compile_task` leaves it.
        config: `RunConfig`.
        schedule: the learning rate.
        batches: callable from the first and the last step (excluded), host and number
            of hosts to the tf.data.Dataset of what `fit` takes, this host's part.
        evaluation: `Evaluation`, or None.
        data_facts: dict of JSON values; a resumed run must have the same.
        derive: callable from the logs of a step and its seconds to more scalars; None:
            `speeds`.

    Returns:
        int: the signal that stopped the run, or None if it is through.

    Raises:
        TrainingDiverged: if a weight is no finite number, or many updates in a row
            would have been none.
        SavingFailed: if a checkpoint, preset or scalar could not be written.
        UsageError: if the checkpoint is of another model or other data.
    """
    total_steps = schedule.total_steps
    derive = derive or functools.partial(speeds, config)
    _prepare_folder(config, data_facts)
    state = TrainingState(task, _checkpoint_dir(config))
    first_step = state.restore()
    if first_step:
        print(f"going on from the checkpoint of step {first_step}")
    scalars = Scalars(config.model_dir, first_step)
    sum_over_hosts = devices.sum_over_hosts(task.distribute_strategy)
    with Interruption(sum_over_hosts) as interruption:
        evaluations = _evaluations(
            evaluation, config, first_step, total_steps, scalars, state, interruption
        )
        for evaluate in evaluations:
            evaluate.make_up(task)
        if first_step == total_steps or interruption.signal is not None:
            return interruption.signal
        # In this order: nothing is logged, kept or saved of a loss that is no number.
        between_steps = [
            callbacks.StopOnNonFinite(first_step, state),
            callbacks.Spikes(first_step, scalars),
            callbacks.Progress(
                first_step, total_steps, config.log_every, schedule, scalars, derive
            ),
            callbacks.Meeting(first_step, interruption),
            *evaluations,
            callbacks.Checkpoint(
                first_step, total_steps, config.save_every, state, interruption
            ),
        ]
        began = time.perf_counter()
        steps = functools.partial(batches, first_step, total_steps)
        _fit(task, config, steps, total_steps - first_step, between_steps, state)
        print(f"trained for {callbacks.duration(time.perf_counter() - began)}")
    return interruption.signal


def _prepare_folder(config, data_facts):
    _check_facts(config, data_facts)
    os.makedirs(config.model_dir, exist_ok=True)
    record = {"settings": as_json(config), "data": data_facts}
    if devices.is_chief():
        files.write_json(os.path.join(config.model_dir, CONFIG_FILE), record)
        files.recover_directory(preset_dir(config))


def _fit(task, config, make_batches, num_steps, between_steps, state):
    strategy = task.distribute_strategy
    try:
        task.fit(
            devices.distribute(strategy, make_batches, config.batch_size),
            callbacks=between_steps,
            steps_per_epoch=num_steps,
            shuffle=False,
            verbose=0,
        )
    except (OSError, tf.errors.OpError) as error:
        if not files.is_out_of_space(error):
            raise
        raise state.out_of_space(error) from None
    finally:
        state.wait()


def speeds(config, logs, seconds):
    """{"examples_per_second": …} of steps that take so long."""
    return {"examples_per_second": config.batch_size / seconds}


def exit_code(stopped_by):
    """What a run that a signal stopped, and that saved, ends with: 0 after SIGTERM,
    which takes machines back; 130 after Ctrl-C."""
    return 0 if stopped_by == signal.SIGTERM else 128 + stopped_by


def finish(config, results):
    """Writes and prints `results.json`, the mark of a finished run."""
    if not devices.is_chief():
        return
    files.write_json(os.path.join(config.model_dir, RESULTS_FILE), results)
    print(json.dumps(results, indent=2, ensure_ascii=False), flush=True)


def preset_dir(config):
    """Where the best or final weights are."""
    return os.path.join(config.model_dir, PRESET)


def describe(task, num_examples, total_steps, config):
    """Prints the size of the model and of the run."""
    where = devices.describe(task.distribute_strategy)
    epochs = total_steps * config.batch_size / num_examples
    print(
        f"{task.count_params():,} parameters on {where}; {num_examples:,} examples, "
        f"{total_steps:,} steps of {config.batch_size} ({epochs:.1f} epochs)",
        flush=True,
    )


def _evaluations(
    evaluation, config, first_step, total_steps, scalars, state, interruption
):
    if evaluation is None:
        return []
    return [
        callbacks.Evaluate(
            first_step,
            total_steps,
            **vars(evaluation),
            preset_dir=preset_dir(config),
            scalars=scalars,
            state=state,
            interruption=interruption,
        )
    ]


def _checkpoint_dir(config):
    return os.path.join(config.model_dir, "checkpoints")


def _has_checkpoint(config):
    return bool(checkpoints(_checkpoint_dir(config)))


def _check_facts(config, data_facts):
    if not _has_checkpoint(config):
        return
    saved = _read_json(config, CONFIG_FILE)["data"]
    changes = [
        f"{name}: {saved.get(name)!r} -> {value!r}"
        for name, value in data_facts.items()
        if saved.get(name) != value
    ]
    _refuse_changes(config, changes)


def _refuse_changes(config, changes):
    if changes:
        raise files.UsageError(
            f"{config.model_dir} holds a run of other settings ({'; '.join(changes)}). "
            "Go on with those, or take another model_dir"
        )


def _read_json(config, name):
    path = os.path.join(config.model_dir, name)
    if not os.path.exists(path):
        raise files.UsageError(f"{config.model_dir} has checkpoints, but no {name}")
    with open(path, encoding="utf-8") as file:
        return json.load(file)
