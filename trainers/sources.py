"""Rows of files and of TFDS, before a task gives them their meaning."""

import contextlib
import csv
import json
import os
import re
import sys

from deberta_tf import files
from deberta_tf.files import UsageError

# "tfds:glue/sst2:train": the name of a builder, then the split. Several builders with
# the same features are joined by "+".
_TFDS = re.compile(r"tfds:(?P<builders>[^:]+):(?P<split>.+)")


def listed(names):
    """The names, quoted, for a message."""
    return ", ".join(repr(name) for name in names)


@contextlib.contextmanager
def open_text(path):
    """Yields the open file, UTF-8, whose lines end at "\\n" alone.

    Raises:
        UsageError: if there is no such file, or it is not UTF-8.
    """
    if not os.path.isfile(path):
        raise UsageError(f"no file {path!r}")
    try:
        # "-sig": the mark that spreadsheets write is not part of the first name.
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from None


def read_csv(path):
    """Rows, dicts of str, of an RFC 4180 file with a header line."""
    # Long documents are no mistake.
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        try:
            return _table(path, list(csv.reader(file, strict=True)))
        except csv.Error as error:
            raise UsageError(f"{path} is not CSV: {error}") from None


def read_tsv(path):
    """Rows, dicts of str, of a file with a header line, tabs and no quoting."""
    return _table(path, read_tsv_lines(path))


def read_tsv_lines(path):
    """The lines, lists of str, of a file with tabs and no quoting."""
    with open_text(path) as file:
        return [line.rstrip("\r\n").split("\t") for line in file]


def pick_columns(path, lines, columns, optional=()):
    """Rows of the columns that are asked for, as the official readers take them.

    They pass over a row that is too short, or whose optional value is empty (QQP has
    some of both), and over what a row has too much; how many are passed over is
    printed.

    Args:
        path: str, for messages.
        lines: list of lists of str; the first has the names.
        columns: dict from our name to the file's.
        optional: our names of the columns that the file may lack.

    Returns:
        list of dicts of str, and "idx", int: the row in the file, from 0.

    Raises:
        UsageError: if there are no lines, or a column is missing.
    """
    lines = [line for line in lines if any(line)]
    if not lines:
        raise UsageError(f"{path} has no rows")
    header = lines.pop(0)
    places = {ours: header.index(its) for ours, its in columns.items() if its in header}
    for ours, its in columns.items():
        if ours not in places and ours not in optional:
            raise UsageError(f"{path} has no column {its!r}; found: {listed(header)}")
    last = max(places.values())
    needed = [places[name] for name in optional if name in places]
    rows = [
        {"idx": idx, **{name: line[place] for name, place in places.items()}}
        for idx, line in enumerate(lines)
        if len(line) > last and all(line[place] for place in needed)
    ]
    if len(rows) < len(lines):
        print(
            f"{path}: {len(lines) - len(rows):,} of {len(lines):,} rows are broken and "
            "left out",
            flush=True,
        )
    return rows


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
    return [dict(zip(header, line, strict=True)) for line in lines]


def read_jsonl(path):
    """Rows, dicts, of a file with a JSON object a line."""
    rows = []
    with open_text(path) as file:
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
    return rows


def read_json(path):
    """The object, a dict, of a JSON file."""
    if not os.path.isfile(path):
        raise UsageError(f"no file {path!r}")
    try:
        return files.read_json(path)
    except ValueError as error:
        raise UsageError(str(error)) from None


def is_tfds(source):
    """Whether a source is "tfds:BUILDER:SPLIT" rather than a path."""
    return _TFDS.fullmatch(source) is not None


def read_tfds(source):
    """Rows, dicts of Python values, of "tfds:BUILDER:SPLIT".

    Class labels, and lists of them, come by their names; a hidden one, -1, is None.

    Raises:
        UsageError: if the builder or the split is unknown, cannot be had, or is empty.
    """
    # Only here: it takes seconds to import, and most data are files.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builders, split = _TFDS.fullmatch(source).groups()
    rows = []
    for name in builders.split("+"):
        try:
            builder = tfds.builder(name)
            builder.download_and_prepare()
            found = list(tfds.as_numpy(builder.as_dataset(split=split)))
        except (ValueError, OSError) as error:
            # The first line tells; hundreds of names may follow.
            reason = str(error).partition("\n")[0]
            raise UsageError(f"tfds:{name}:{split}: {reason}") from None
        names = _class_names(builder.info.features, tfds.features)
        rows += [_plain_row(row, names) for row in found]
    if not rows:
        raise UsageError(f"{source} has no rows")
    return rows


def _class_names(features, kinds):
    """{feature: its `int2str`} of the class labels, and of lists of them."""
    inner = {
        name: feature.feature if isinstance(feature, kinds.Sequence) else feature
        for name, feature in features.items()
    }
    return {
        name: feature.int2str
        for name, feature in inner.items()
        if isinstance(feature, kinds.ClassLabel)
    }


def _plain_row(row, names):
    row = _plain(row)
    for name, name_of in names.items():
        row[name] = _named(row[name], name_of)
    return row


def _plain(value):
    """Python's own values for bytes, arrays and ragged tensors."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if hasattr(value, "to_list"):
        value = value.to_list()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _named(value, name_of):
    if isinstance(value, list):
        return [_named(one, name_of) for one in value]
    return None if value < 0 else name_of(value)
