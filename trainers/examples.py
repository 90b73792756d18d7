"""Labelled examples from TSV, CSV, JSONL and TFDS, and their label ids."""

import csv
import dataclasses
import json
import math
import os
import re
import sys

import numpy as np

from deberta_tf.files import UsageError

# "tfds:glue/sst2:train": the name of a builder, then the split.
_TFDS = re.compile(r"tfds:(?P<builder>[^:]+):(?P<split>.+)")


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
    tfds_name = _TFDS.fullmatch(source)
    if tfds_name:
        columns = _read_tfds(**tfds_name.groupdict())
    else:
        columns = _read_file(source)
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


def class_ids(examples, names):
    """Labels as class ids, int32 (n,), in the order of `names`.

    Raises:
        UsageError: for a label that is not among the names.
    """
    ids = {name: index for index, name in enumerate(names)}
    for row, label in enumerate(examples.labels):
        if label not in ids:
            raise UsageError(
                f"{examples.source} has label {label!r} in row {row + 1}; "
                f"the declared labels are {_listed(names)}"
            )
    return np.array([ids[label] for label in examples.labels], np.int32)


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
            f"{source} has no column {name!r}; found: {_listed(columns)}. "
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


def _read_file(path):
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl}
    reader = readers.get(os.path.splitext(path)[1])
    if reader is None:
        raise UsageError(
            f"{path!r} must end in .csv, .tsv or .jsonl, or be tfds:BUILDER:SPLIT"
        )
    if not os.path.isfile(path):
        raise UsageError(f"no file {path!r}")
    try:
        # "-sig": the mark that spreadsheets write is not part of the first name.
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            columns = reader(path, file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from None
    if not columns or not next(iter(columns.values())):
        raise UsageError(f"{path} has no rows")
    return columns


def _read_csv(path, file):
    # Long documents are no mistake.
    csv.field_size_limit(sys.maxsize)
    try:
        return _table(path, list(csv.reader(file, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path} is not CSV: {error}") from None


def _read_tsv(path, file):
    return _table(path, [line.rstrip("\r\n").split("\t") for line in file])


def _table(path, lines):
    lines = [line for line in lines if any(line)]
    header = lines.pop(0) if lines else []
    for name in header:
        if header.count(name) > 1:
            raise UsageError(f"{path} has {header.count(name)} columns {name!r}")
    for row, line in enumerate(lines):
        if len(line) != len(header):
            raise UsageError(
                f"{path} has {len(header)} columns, but {len(line)} in row {row + 1}"
            )
    return {name: [line[i] for line in lines] for i, name in enumerate(header)}


def _read_jsonl(path, file):
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path} line {number} must hold an object {{...}}")
        rows.append(row)
    # A column of some rows only is there; what lacks it is told by its row.
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_tfds(builder, split):
    # Only here: it takes seconds to import, and most data are files.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        made = tfds.builder(builder)
        made.download_and_prepare()
        rows = list(tfds.as_numpy(made.as_dataset(split=split)))
    except (ValueError, OSError) as error:
        # The first line tells; hundreds of names may follow.
        reason = str(error).partition("\n")[0]
        raise UsageError(f"tfds:{builder}:{split}: {reason}") from None
    if not rows:
        raise UsageError(f"tfds:{builder}:{split} has no rows")
    columns = {}
    for name, feature in made.info.features.items():
        values = [row[name] for row in rows]
        if isinstance(feature, tfds.features.ClassLabel):
            columns.update(_named_labels(name, values, feature))
        else:
            columns[name] = [_plain(value) for value in values]
    return columns


def _named_labels(name, values, feature):
    # GLUE's test sets hide their labels behind -1.
    if any(value < 0 for value in values):
        return {}
    return {name: [feature.int2str(int(value)) for value in values]}


def _plain(value):
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(names):
    return ", ".join(repr(name) for name in names)
