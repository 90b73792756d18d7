"""The examples of a run, by split, and what is known of their task."""

import dataclasses
import os

import numpy as np

from deberta_tf import files
from deberta_tf.entity_metrics import is_entity_tag
from trainers import examples, scoring
from trainers.kinds import choices, entities, marked, spans, tags, text
from trainers.kinds.encoded import Setup, answer_column
from trainers.tasks import table
from trainers.tasks.record import Record, TaskExamples

KINDS = {
    "text": text,
    "tags": tags,
    "spans": spans,
    "choices": choices,
    "entities": entities,
    "marked": marked,
}
# Kinds whose classes have names.
_NAMED = ("text", "tags", "marked")
TRAINING = ("train", "dev")


def read_splits(config):
    """{"train", "dev" and others, such as "test": `TaskExamples`}.

    Of a task all splits that its data have; of files of one's own those that are named.

    Raises:
        UsageError: if a split can't be read, or a task of `also` has other classes.
    """
    sources = _sources(config)
    if config.task is None:
        return {split: _own_texts(config, split, sources[split]) for split in sources}
    record = table.find(config.task)
    splits = {
        split: record.read(source, needs_labels=split in TRAINING)
        for split, source in sources.items()
    }
    for name in config.also:
        other = table.find(name)
        if (other.kind, other.labels) != (record.kind, record.labels):
            raise files.UsageError(f"also: {name} has not the classes of {record.name}")
        source = other.source("test", config.data_dir)
        splits[name] = other.read(source, needs_labels=False)
    return splits


def _sources(config):
    """{split: where its examples are}, what is named in place of the task's own."""
    named = {name: getattr(config, name) for name in (*TRAINING, "test")}
    named = {name: source for name, source in named.items() if source is not None}
    if config.task is None:
        return named
    record = table.find(config.task)
    if set(TRAINING) <= set(named):
        # Data of one's own in the layout of a task: not its official test set.
        return named
    known = record.splits if config.data_dir is None else record.files
    found = {}
    for split in [*TRAINING, *(name for name in known if name not in TRAINING)]:
        source = named.get(split) or record.source(split, config.data_dir)
        is_file = split not in named and config.data_dir is not None
        if is_file and split not in TRAINING and not os.path.exists(source):
            print(f"{split}: no {source}, so it is left out", flush=True)
            continue
        found[split] = source
    return found


def _own_texts(config, split, source):
    read = examples.read_examples(
        source, config.text_columns, config.label_column, split != "test"
    )
    columns = {
        "id": list(range(len(read))),
        **dict(zip(("text", "text_pair"), read.texts, strict=False)),
    }
    if read.labels is not None:
        columns["label"] = read.labels
        if config.regression:
            columns["label"] = examples.target_scores(read).tolist()
    return TaskExamples(source, columns)


def make_setup(config, train):
    """What the trainer is told of the task.

    Args:
        config: `FinetuneConfig`.
        train: `TaskExamples` to train on: they have the classes where nothing else
            names them.

    Raises:
        UsageError: if there is one class only, or no score of the name `best_by`.
    """
    record = table.find(config.task) if config.task else _own_record(config)
    names = _class_names(config, record, train)
    if record.kind == "tags":
        scores = ("accuracy",)
        if all(map(is_entity_tag, names)):
            scores = (*record.scores, *scores)
        record = dataclasses.replace(record, scores=scores, best_by=scores[0])
    known = (*record.scores, "mean")
    if config.best_by is not None:
        if config.best_by not in known:
            raise files.UsageError(
                f"best_by must be one of {', '.join(known)}. "
                f"Received: {config.best_by!r}"
            )
        record = dataclasses.replace(record, best_by=config.best_by)
    return Setup(config, record, names)


def _own_record(config):
    """The record of texts of the user's own."""
    scores = scoring.REGRESSION_SCORES if config.regression else scoring.CLASS_SCORES
    return Record(
        name="text",
        kind="text",
        labels=config.labels,
        files={},
        scores=scores,
        best_by=scores[0],
        read_file=None,
        convert=None,
    )


def _class_names(config, record, train):
    if record.kind not in _NAMED or config.regression:
        return None
    found = train.columns["tags" if record.kind == "tags" else "label"]
    if config.labels or record.labels:
        return list(config.labels or record.labels)
    if record.kind == "tags":
        found = [tag for sentence in found for tag in sentence]
    elif isinstance(found[0], float):
        return None
    names = examples.label_names(found)
    if len(names) < 2:
        raise files.UsageError(
            f"{train.source} has the one label {names[0]!r}; classes must be two or "
            "more. Declare them with --labels"
        )
    return names


def encode_splits(setup, task, splits):
    """{split: `Encoded`}; prints how many rows there are, and the class counts."""
    encoded = {}
    for split, data in splits.items():
        encoded[split] = KINDS[setup.record.kind].encode(setup, task, data)
        mask = encoded[split].inputs["padding_mask"]
        full = int(np.count_nonzero(mask[..., -1]))
        rows = f" in {len(encoded[split]):,} rows" if len(mask) != len(data) else ""
        print(
            f"{split}: {len(data):,} examples{rows}{_class_counts(setup, data)}; "
            f"{full:,} fill all {setup.config.sequence_length} tokens or are cut",
            flush=True,
        )
    return encoded


def _class_counts(setup, data):
    labels = answer_column(setup, data)
    if labels is None or setup.names is None or setup.record.kind == "tags":
        return ""
    listed = (f"{name} {labels.count(name):,}" for name in setup.names)
    return f" ({', '.join(listed)})"


def majority(setup, splits):
    """Accuracy of the most frequent class of train; None for what has no classes."""
    if setup.names is None or setup.record.kind == "tags":
        return None
    return scoring.majority(
        {split: answer_column(setup, data) for split, data in splits.items()}
    )
