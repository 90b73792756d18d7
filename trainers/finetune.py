"""Fine-tunes a DeBERTa to classify texts or pairs of texts, or to score them.

    python -m trainers.finetune --preset runs/small/preset --model_dir runs/sentiment \\
        --train train.csv --dev dev.csv --test test.csv --text_columns text

The result is the preset `model_dir/preset`, the weights that scored best on dev, and
`results.json`. The same command goes on where an interrupted one was.
"""

import dataclasses
import functools
import hashlib
import math
import os

import keras
import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.embeddings import check_absolute_length
from deberta_tf.optimization import layer_rates
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from trainers import batches, callbacks, devices, examples, run, scoring, vocabulary
from trainers.config import (
    check_above_zero,
    check_at_least,
    check_choice,
    check_share,
    parse,
)

# Texts tokenised at once.
CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(run.RunConfig):
    """Fine-tunes a DeBERTa to classify texts or pairs of texts, or to score them."""

    preset: str
    """Folder of a preset (masked LM, classifier or backbone; the head is new) or of a
    Hugging Face or Microsoft checkpoint; or a published size with load_weights
    false."""
    load_weights: bool = True
    """Take the preset's weights; false: its geometry and tokenizer alone."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer, where the preset has none."""
    train: str
    """Examples to train on: .csv, .tsv, .jsonl or tfds:BUILDER:SPLIT."""
    dev: str
    """Examples that decide which weights are kept."""
    test: str | None = None
    """Examples that the kept weights are scored on; without labels: predicted only."""
    text_columns: tuple[str, ...] = ("sentence",)
    """Columns of the text, or of the two texts of a pair, separated by a comma."""
    label_column: str = "label"
    """Column of the label."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in order; none: the labels of train, sorted."""
    regression: bool = False
    """Labels are numbers to predict, not classes."""
    sequence_length: int = 128
    """Tokens of an example, special ones included; longer texts are cut."""
    epochs: float = 3.0
    """Passes over the training examples; 0.5: half of one."""
    learning_rate: float = 5e-5
    """Peak of the learning rate, reached after the warm-up; it then falls to 0."""
    warmup_fraction: float = 0.1
    """Share of the steps over which the learning rate rises."""
    warmup_steps: int | None = None
    """Steps over which it rises; none: warmup_fraction decides."""
    layer_decay: float | None = None
    """What a block's learning rate is of that of the block above it, the last one's of
    the head's; the embeddings come below the first. None: all have one rate."""
    frozen_layers: int | None = None
    """Blocks from below that stay as they are, the embeddings with them; 0: these
    alone. None: everything is trained."""
    classifier_dropout: float | None = None
    """Rate before the logits; none: the backbone's."""
    eval_every: int | None = None
    """Steps between evaluations on dev; none: an epoch."""
    best_by: str | None = None
    """Dev score that decides; none: accuracy, or pearson for a regression."""
    sift: bool = False
    """Scale-invariant fine-tuning: what small changes of the embeddings do to the
    outputs counts as a loss of its own. A step runs the model three times."""
    sift_weight: float = 5.0
    """What that loss counts beside the task's."""
    sift_step_size: float = 1e-4
    """Length of the step of ascent to where the outputs change most."""
    sift_initial_scale: float = 1e-2
    """Standard deviation of the change that the ascent begins at."""
    sift_recompute: bool = False
    """Run the clean pass once more instead of keeping it: less memory."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "eval_every")
        check_at_least(self, 0, "frozen_layers")
        check_above_zero(self, "epochs", "layer_decay")
        if self.layer_decay is not None and self.layer_decay > 1:
            raise files.UsageError(
                f"layer_decay must be at most 1. Received: {self.layer_decay}"
            )
        check_share(self, "warmup_fraction", "classifier_dropout")
        if len(self.text_columns) not in (1, 2):
            raise files.UsageError(
                "text_columns must be one name, or two for pairs. "
                f"Received: {', '.join(self.text_columns) or 'none'}"
            )
        # A token of each text, and the special ones.
        check_at_least(self, 1 + 2 * len(self.text_columns), "sequence_length")
        if self.regression and self.labels is not None:
            raise files.UsageError("a regression has no classes: leave out --labels")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise files.UsageError(
                "labels must be two or more different names. "
                f"Received: {', '.join(self.labels) or 'none'}"
            )
        check_above_zero(self, "sift_weight", "sift_step_size", "sift_initial_scale")
        for field in dataclasses.fields(self):
            is_set = getattr(self, field.name) != field.default
            if field.name.startswith("sift_") and is_set and not self.sift:
                raise files.UsageError(f"{field.name} is nothing without --sift")
        if self.best_by is not None:
            scores = (
                scoring.REGRESSION_SCORES if self.regression else scoring.CLASS_SCORES
            )
            check_choice(self, "best_by", scores)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as arrays.

    Attributes:
        inputs: dict of int32 (n, sequence_length), the model's inputs.
        targets: int32 (n,) class ids, or float32 (n,) scores; None: no labels.
    """

    inputs: dict
    targets: np.ndarray | None

    def __len__(self):
        return len(self.inputs["token_ids"])


def main(argv=None):
    config = parse(FinetuneConfig, argv)
    if run.begin(config):
        return 0
    splits = read_splits(config)
    names = None if config.regression else class_names(config, splits["train"])
    strategy = devices.make_strategy(config)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        task = build_task(config, names)
    encoded = encode_splits(config, task, splits, names)
    train = encoded["train"]
    total_steps = math.ceil(config.epochs * len(train) / config.batch_size)
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = math.floor(config.warmup_fraction * total_steps)
    with strategy.scope():
        schedule = run.make_schedule(config, total_steps, warmup_steps)
        # No metrics in the step: the evaluations have the scores.
        rates = ()
        if config.layer_decay is not None:
            rates = layer_rates(task.backbone.num_layers, config.layer_decay)
        optimizer = run.make_optimizer(config, schedule, rates)
        run.compile_task(task, config, optimizer, metrics=None)
    run.describe(task, len(train), total_steps, config)
    training = functools.partial(training_batches, config, train)
    steps_per_epoch = math.ceil(len(train) / config.batch_size)
    evaluation = dev_evaluation(config, encoded["dev"], steps_per_epoch)
    model = by_sift(config, task) if config.sift else task
    if config.dry_run:
        return run.dry_run(model, config, training, evaluation)
    facts = {"train": digest(train), "dev": digest(encoded["dev"]), "labels": names}
    stopped_by = run.train(model, config, schedule, training, evaluation, facts)
    if stopped_by:
        return run.exit_code(stopped_by)
    if not devices.is_chief():
        return 0
    preset = run.preset_dir(config)
    best = DebertaTextClassifier.from_preset(
        preset, dtype=config.precision, compile=False
    )
    best.compile(jit_compile=config.jit_compile)
    targets = {split: one.targets for split, one in encoded.items()}
    results = {
        "step": callbacks.read_scores(preset)["step"],
        **score_splits(config, best, encoded, names),
        "majority_class": None
        if config.regression
        else scoring.majority(targets, names),
        "parameters": task.count_params(),
    }
    run.finish(config, results)


def read_splits(config):
    """{"train", "dev" and, where given, "test": `Examples`}."""
    sources = {"train": config.train, "dev": config.dev, "test": config.test}
    return {
        name: examples.read_examples(
            source, config.text_columns, config.label_column, name != "test"
        )
        for name, source in sources.items()
        if source is not None
    }


def class_names(config, train):
    """The declared labels, or those of the training examples.

    Raises:
        UsageError: if there is one class only.
    """
    names = list(config.labels or examples.label_names(train.labels))
    if len(names) < 2:
        raise files.UsageError(
            f"{train.source} has the one label {names[0]!r}; classes must be two or "
            "more. Declare them with --labels"
        )
    return names


def build_task(config, names):
    """The classifier with the preset's backbone and tokenizer and a new head.

    Raises:
        ValueError: if the preset is missing, has no tokenizer, its vocabulary does not
            match, it has fewer absolute positions than `sequence_length`, or fewer
            blocks than `frozen_layers`.
    """
    backbone = DebertaBackbone.from_preset(
        config.preset,
        load_weights=config.load_weights,
        dtype=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
        scan_layers=config.scan_layers,
    )
    if config.frozen_layers is not None:
        backbone.freeze(config.frozen_layers)
    tokenizer = vocabulary.load_tokenizer(config)
    vocabulary.check_rows(config, tokenizer, backbone)
    preprocessor = DebertaTextClassifierPreprocessor(tokenizer, config.sequence_length)
    if backbone.absolute_position_input:
        check_absolute_length(config.sequence_length, backbone.max_sequence_length)
    return DebertaTextClassifier(
        backbone,
        num_classes=1 if config.regression else len(names),
        labels=names,
        dropout=config.classifier_dropout,
        preprocessor=preprocessor,
    )


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


def encode_splits(config, task, splits, names):
    """{split: `Encoded`}; prints how many examples are cut, and the class counts."""
    encoded = {}
    for split, data in splits.items():
        inputs = encode(task, data.texts)
        targets = None
        if data.labels is not None:
            targets = (
                examples.target_scores(data)
                if config.regression
                else examples.class_ids(data, names)
            )
        encoded[split] = Encoded(inputs, targets)
        full = int(np.count_nonzero(inputs["padding_mask"][:, -1]))
        print(
            f"{split}: {len(data):,} examples{_class_counts(targets, names)}; "
            f"{full:,} fill all {config.sequence_length} tokens or are cut",
            flush=True,
        )
    return encoded


def _class_counts(targets, names):
    if targets is None or names is None:
        return ""
    counts = np.bincount(targets, minlength=len(names))
    listed = (f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    return f" ({', '.join(listed)})"


def encode(task, texts):
    """Tokenises and packs texts once, for all epochs.

    Args:
        task: `DebertaTextClassifier`.
        texts: tuple of one or two lists of str.

    Returns:
        dict of int32 (n, sequence_length), the task's inputs.
    """
    parts = []
    for start in range(0, len(texts[0]), CHUNK):
        chunk = tuple(tf.constant(text[start : start + CHUNK]) for text in texts)
        packed = task.preprocess_samples(chunk if len(chunk) > 1 else chunk[0])
        parts.append({name: packed[name].numpy() for name in task.input})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def digest(encoded):
    """SHA-256 of ids and labels, hex."""
    summary = hashlib.sha256(encoded.inputs["token_ids"].tobytes())
    summary.update(encoded.targets.tobytes())
    return summary.hexdigest()


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
    inputs, targets = _on_host(train.inputs), _on_host({"y": train.targets})["y"]
    return numbers.map(
        lambda _, row: (_gather(inputs, row), tf.gather(targets, row))
    ).prefetch(2)


def predict(config, task, inputs, max_batches=-1):
    """Logits, float32 (n, classes), in the order of the examples."""
    num_rows = len(inputs["token_ids"])
    numbers = batches.rows_in_order(num_rows, config.batch_size).take(max_batches)
    held = _on_host(inputs)
    dataset = numbers.map(lambda _, row: (_gather(held, row),)).prefetch(2)
    if devices.is_multi_worker():
        # Each worker scores all of it, for itself.
        logits = tf.function(lambda inputs: task(inputs, training=False))
        found = [logits(inputs).numpy() for (inputs,) in dataset]
        return np.concatenate(found)[:num_rows]
    return task.predict(dataset, verbose=0)[:num_rows]


def dev_evaluation(config, dev, steps_per_epoch):
    """When dev is scored, and by what the weights to keep are chosen."""
    names = list(
        scoring.REGRESSION_SCORES if config.regression else scoring.CLASS_SCORES
    )

    def evaluate(task, max_batches=-1):
        logits = predict(config, task, dev.inputs, max_batches)
        return scoring.score(logits, dev.targets[: len(logits)])

    every = config.eval_every or steps_per_epoch
    return run.Evaluation(evaluate, every, config.best_by or names[0], True, "dev")


def score_splits(config, task, encoded, names):
    """Scores of dev and test; their predictions go to predictions-<split>.jsonl."""
    scores = {}
    for split in ("dev", "test"):
        if split not in encoded:
            continue
        logits = predict(config, task, encoded[split].inputs)
        targets = encoded[split].targets
        path = os.path.join(config.model_dir, f"predictions-{split}.jsonl")
        scoring.write_predictions(path, logits, targets, names)
        scores[split] = None if targets is None else scoring.score(logits, targets)
    return scores


def _on_host(arrays):
    # Else a GPU would hold the data, and copy every batch back.
    with tf.device("CPU:0"):
        return {name: tf.constant(array) for name, array in arrays.items()}


def _gather(inputs, row):
    return {name: tf.gather(array, row) for name, array in inputs.items()}


if __name__ == "__main__":
    files.run_command(main)
