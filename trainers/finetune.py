"""Fine-tunes a DeBERTa for a task of the paper, or on labelled texts of one's own.

    python -m trainers.finetune --task mnli --preset hf://microsoft/deberta-v3-base \\
        --model_dir runs/mnli
    python -m trainers.finetune --preset runs/small/preset --model_dir runs/sentiment \\
        --train train.csv --dev dev.csv --test test.csv --text_columns text

The result is the preset `model_dir/preset`, the weights that scored best on dev,
`results.json`, and predictions of all splits but train, also as the servers of GLUE and
SuperGLUE and the scorer of SQuAD take them. The same command goes on where an
interrupted one was.
"""

import functools
import gc
import math
import os
import statistics
import warnings

import keras
import numpy as np
import tensorflow as tf

from deberta_tf import files, submissions
from deberta_tf.checkpoints import folders
from deberta_tf.embeddings import check_absolute_length
from deberta_tf.optimization import layer_rates
from deberta_tf.sift import ScaleInvariantFineTuning
from trainers import batches, callbacks, devices, run, scoring, vocabulary
from trainers.finetune_config import parse_config, seed_config
from trainers.finetune_data import (
    KINDS,
    encode_splits,
    majority,
    make_setup,
    read_splits,
)
from trainers.kinds.encoded import answer_column


def main(argv=None):
    config = parse_config(argv)
    if config.seeds == 1:
        return fine_tune(config)
    if devices.is_multi_worker():
        raise files.UsageError("seeds: on several hosts give a command for each --seed")
    found = {}
    for number in range(config.seeds):
        one = seed_config(config, number)
        code = fine_tune(one)
        if code or config.dry_run or not run.is_finished(one):
            return code
        found[str(one.seed)] = run.read_results(one)
        # Else the graphs of all runs would be held.
        keras.backend.clear_session()
        gc.collect()
    results = {**scoring.over_seeds(found), "seeds": found}
    files.write_json(os.path.join(config.model_dir, run.RESULTS_FILE), results)
    print(scoring.table(results["mean"], results["std"]), flush=True)
    return 0


def fine_tune(config):
    """One run; returns its exit code."""
    if run.begin(config):
        return 0
    splits = read_splits(config)
    setup = make_setup(config, splits["train"])
    kind = KINDS[setup.record.kind]
    strategy = devices.make_strategy(config)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        task = build_task(setup)
    encoded = encode_splits(setup, task, splits)
    train = encoded["train"]
    with strategy.scope():
        schedule = compile_task(config, task, len(train))
    training = functools.partial(training_batches, config, train)
    steps_per_epoch = math.ceil(len(train) / config.batch_size)
    evaluation = dev_evaluation(setup, encoded["dev"], splits["dev"], steps_per_epoch)
    model = by_sift(config, task) if config.sift else task
    if config.dry_run:
        return run.dry_run(model, config, training, evaluation)
    facts = {
        "train": train.digest(),
        "dev": encoded["dev"].digest(),
        "labels": setup.names,
    }
    stopped_by = run.train(model, config, schedule, training, evaluation, facts)
    if stopped_by:
        return run.exit_code(stopped_by)
    if not devices.is_chief():
        return 0
    preset = run.preset_dir(config)
    best = type(task).from_preset(preset, dtype=config.precision, compile=False)
    best.compile(jit_compile=config.jit_compile)
    results = {
        "step": callbacks.read_scores(preset)["step"],
        **score_splits(setup, kind, best, encoded, splits),
        "majority_class": majority(setup, splits),
        "parameters": task.count_params(),
    }
    run.finish(config, results)
    print(scoring.table(results), flush=True)


def compile_task(config, task, num_rows):
    """Compiles the task to train on so many rows; returns its learning rate."""
    total_steps = math.ceil(config.epochs * num_rows / config.batch_size)
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = math.floor(config.warmup_fraction * total_steps)
    schedule = run.make_schedule(config, total_steps, warmup_steps)
    rates = ()
    if config.layer_decay is not None:
        rates = layer_rates(task.backbone.num_layers, config.layer_decay)
    optimizer = run.make_optimizer(config, schedule, rates)
    # No metrics in the step: the evaluations have the scores.
    run.compile_task(task, config, optimizer, metrics=None, weighted_metrics=None)
    run.describe(task, num_rows, total_steps, config)
    return schedule


def build_task(setup):
    """The task with what the preset has of it: its backbone, and its head or parts.

    A classifier of other classes keeps the pooler, as the official code does with
    checkpoints of MNLI. What is new is printed.

    Raises:
        ValueError: if the preset is missing, has no tokenizer, its vocabulary does not
            match, it has fewer absolute positions than `sequence_length`, or fewer
            blocks than `frozen_layers`.
    """
    config = setup.config
    # What is wrong with it is told before its tokenizer is missed.
    folders.open_checkpoint(config.preset, config.load_weights)

    def load(task_class, **arguments):
        return task_class.from_preset(
            config.preset,
            load_weights=config.load_weights,
            dtype=config.precision,
            gradient_checkpointing=config.gradient_checkpointing,
            scan_layers=config.scan_layers,
            **arguments,
        )

    tokenizer = vocabulary.load_tokenizer(config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = KINDS[setup.record.kind].make_task(setup, load, tokenizer)
    for warning in caught:
        print(f"{config.preset}: {warning.message}", flush=True)
    backbone = task.backbone
    if config.frozen_layers is not None:
        backbone.freeze(config.frozen_layers)
    vocabulary.check_rows(config, tokenizer, backbone)
    if backbone.absolute_position_input:
        check_absolute_length(config.sequence_length, backbone.max_sequence_length)
    return task


def by_sift(config, task):
    """What trains the task by scale-invariant fine-tuning."""
    if config.precision == "mixed_bfloat16":
        print(
            f"SiFT: steps of {config.sift_step_size} are below the rounding of "
            "bfloat16: take float32, or a larger --sift_step_size",
            flush=True,
        )
    return ScaleInvariantFineTuning(
        task,
        weight=config.sift_weight,
        step_size=config.sift_step_size,
        initial_scale=config.sift_initial_scale,
        recompute=config.sift_recompute,
        seed=config.seed,
    )


def training_batches(config, train, first_step, last_step, host=0, num_hosts=1):
    """Batches of the steps, as `fit` takes them: the part of one host."""
    numbers = batches.training_rows(
        len(train),
        config.batch_size,
        config.seed,
        first_step,
        last_step,
        host,
        num_hosts,
    )
    held = {"x": train.inputs, "y": train.targets, "weights": train.weights}
    held = _on_host({name: one for name, one in held.items() if one is not None})

    def batch(_, row):
        own = tf.nest.map_structure(lambda array: tf.gather(array, row), held)
        return (train.model_inputs(own.pop("x")), *own.values())

    return numbers.map(batch).prefetch(2)


def predict(config, task, encoded, max_batches=-1):
    """Outputs, float32 (n, …), in the order of the rows."""
    num_rows = len(encoded)
    numbers = batches.rows_in_order(num_rows, config.batch_size).take(max_batches)
    held = _on_host(encoded.inputs)

    def batch(_, row):
        own = {name: tf.gather(array, row) for name, array in held.items()}
        return (encoded.model_inputs(own),)

    dataset = numbers.map(batch).prefetch(2)
    if devices.is_multi_worker():
        # Each worker scores all of it, for itself.
        logits = tf.function(lambda inputs: task(inputs, training=False))
        found = [logits(inputs).numpy() for (inputs,) in dataset]
        return np.concatenate(found)[:num_rows]
    return task.predict(dataset, verbose=0)[:num_rows]


def dev_evaluation(setup, encoded, examples, steps_per_epoch):
    """When dev is scored, and by what the weights to keep are chosen."""
    kind, record = KINDS[setup.record.kind], setup.record

    def evaluate(task, max_batches=-1):
        outputs = predict(setup.config, task, encoded, max_batches)
        answers = kind.answers(setup, outputs, encoded, examples)
        scores = kind.score(setup, answers, examples)
        if record.best_by == "mean":
            scores["mean"] = statistics.mean(scores[name] for name in record.scores)
        return scores

    every = setup.config.eval_every or steps_per_epoch
    return run.Evaluation(evaluate, every, record.best_by, True, "dev")


def score_splits(setup, kind, task, encoded, splits):
    """Scores of all splits but train, None where labels are hidden.

    Their predictions go to predictions-<split>.jsonl and, as the official scorers take
    them, to the folder `submission`.
    """
    config, scores = setup.config, {}
    for split, rows in encoded.items():
        if split == "train":
            continue
        outputs = predict(config, task, rows)
        answers = kind.answers(setup, outputs, rows, splits[split])
        labels = answer_column(setup, splits[split])
        path = os.path.join(config.model_dir, f"predictions-{split}.jsonl")
        scoring.write_predictions(path, answers, labels)
        write_submission(config, split, answers)
        scores[split] = None
        if labels is not None:
            scores[split] = kind.score(setup, answers, splits[split])
    return scores


def write_submission(config, split, answers):
    """Writes the files that the task's official scorer takes, where it has one."""
    task, split = (split, "test") if split in config.also else (config.task, split)
    if task not in submissions.TASKS:
        return
    folder = os.path.join(config.model_dir, "submission")
    try:
        content = submissions.submission(task, split, answers)
    except ValueError as error:
        # Examples of one's own in the layout of a task, or only some of its own.
        print(f"{split}: nothing to hand in: {error}", flush=True)
        return
    for name, text in content.items():
        os.makedirs(folder, exist_ok=True)
        files.atomic_write(os.path.join(folder, name), text)


def _on_host(arrays):
    # Else a GPU would hold the data, and copy every batch back.
    with tf.device("CPU:0"):
        return tf.nest.map_structure(tf.constant, arrays)


if __name__ == "__main__":
    files.run_command(main)
