"""Labelled examples from TSV, CSV, JSONL and TFDS, and their label ids."""

import dataclasses
import json
import math
import os
import re

import numpy as np

from deberta_tf.files import UsageError
from trainers import sources


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts, and labels where there are any.

    Attributes:
        source: str. Where they come from, for messages.
        texts: tuple of lists of str, one list a text column.
        labels: list of str; None: the source has none, or hides them.
    """

    source: str
    texts: tuple
    labels: list | None

    def __len__(self):
        return len(self.texts[0])


def read_examples(source, text_columns, label_column, needs_labels=True):
    """Reads labelled texts.

    `.csv`: RFC 4180, with quotes. `.tsv`: tabs, no quoting, as GLUE's files are. Both
    have a header line. `.jsonl`: an object a line. `tfds:glue/sst2:train`: a TFDS
    builder and split; class labels come by their names. Text is UTF-8.

    Args:
        source: str, a path or "tfds:...".
        text_columns: tuple of one or two names.
        label_column: str.
        needs_labels: bool. False: a source without that column has no labels.

    Returns:
        `Examples`.

    Raises:
        UsageError: for a missing or empty source, a missing column, a line that
            does not parse, or a value that is no text.
    """
    columns = _read_columns(source)
    texts = tuple(_column(columns, name, source, "text") for name in text_columns)
    labels = None
    if needs_labels or label_column in columns:
        labels = _column(columns, label_column, source, "label")
    return Examples(source, texts, labels)


def label_names(labels):
    """The distinct labels: whole numbers in numeric order, others alphabetically."""
    names = sorted(set(labels))
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=int)
    return names


def target_scores(examples):
    """Labels of a regression, float32 (n,).

    Raises:
        UsageError: for a label that is no finite number.
    """
    scores = []
    for row, label in enumerate(examples.labels):
        try:
            scores.append(float(label))
        except ValueError:
            scores.append(math.nan)
        if not math.isfinite(scores[-1]):
            raise UsageError(
                f"{examples.source} has label {label!r} in row {row + 1}; "
                "a regression needs finite numbers"
            )
    return np.array(scores, np.float32)


def _column(columns, name, source, kind):
    if name not in columns:
        raise UsageError(
            f"{source} has no column {name!r}; found: {sources.listed(columns)}. "
            f"Name it with --{kind}_column{'s' if kind == 'text' else ''}"
        )
    values = columns[name]
    for row, value in enumerate(values):
        absent = value in (None, "") if kind == "label" else not isinstance(value, str)
        if absent:
            raise UsageError(
                f"{source} has no {kind} in column {name!r} of row {row + 1}. "
                f"Found: {value!r}"
            )
    return values if kind == "text" else [_label_text(value) for value in values]


def _label_text(value):
    return value if isinstance(value, str) else json.dumps(value)


def _read_columns(source):
    """{name: values} of all columns of a source, in the order of its rows."""
    if sources.is_tfds(source):
        columns = _columns_of(sources.read_tfds(source))
        # GLUE's test sets hide their labels.
        return {name: values for name, values in columns.items() if None not in values}
    readers = {
        ".csv": sources.read_csv,
        ".tsv": sources.read_tsv,
        ".jsonl": sources.read_jsonl,
    }
    reader = readers.get(os.path.splitext(source)[1])
    if reader is None:
        raise UsageError(
            f"{source!r} must end in .csv, .tsv or .jsonl, or be tfds:BUILDER:SPLIT"
        )
    rows = reader(source)
    if not rows:
        raise UsageError(f"{source} has no rows")
    return _columns_of(rows)


def _columns_of(rows):
    # A column of some rows only is there; what lacks it is told by its row.
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
