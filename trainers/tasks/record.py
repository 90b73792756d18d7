"""What a data set is to the trainers, and its examples in columns."""

import dataclasses
import math
import os
from collections.abc import Callable

from deberta_tf.files import UsageError
from trainers import sources

# The column of the answers, which test sets may hide.
ANSWERS = {
    "text": "label",
    "tags": "tags",
    "spans": "answers",
    "choices": "label",
    "entities": "answers",
    "marked": "label",
}


@dataclasses.dataclass(frozen=True)
class TaskExamples:
    """Examples in columns.

    Columns by kind, beside `id`, which is the official one where there is one:
        text: `text`; of pairs also `text_pair`; `label`: the name of a class, or a
            float. In MultiRC also `group`, (paragraph, question); in XNLI `language`.
        tags: `words` and `tags`, lists of str; `document`, int, the same for
            consecutive sentences of a document.
        spans: `question`, `context`; `answers`, list of str, empty where there is no
            answer, and `answer_starts`, list of int, their places in the context.
        choices: `texts` and `choices`, the two segments of each choice, lists of str;
            `label`, the right one, from 0. In RACE also `level`, "high" or "middle".
        entities: `passage`; `query`, with "@placeholder" in it; `entities`, list of
            (start, end) in the passage; `answers`, list of str.
        marked: `text`; in WiC also `text_pair`; `spans`, the two (start, end) of words
            in them, or both in the text; `label`: the name of a class.

    Places are counted in characters (code points), and ends are excluded. The columns
    of answers are absent where they are hidden.

    Attributes:
        source: str. Where they come from, for messages.
        columns: dict from name to list, all of the same length.
    """

    source: str
    columns: dict

    def __len__(self):
        return len(self.columns["id"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A data set of a task: where its examples are, and how answers are scored.

    Attributes:
        name: str. As in `--task`.
        kind: str. "text", "tags", "spans", "choices", "entities" or "marked".
        labels: names of the classes in the official order (SPEC 9.2), in which
            published checkpoints have them. None: there are none, or the user has them.
        builder: str, as TFDS names it; two with the same features are joined by "+".
            None: TFDS has none.
        splits: dict from our split to that of the builder, or "BUILDER:SPLIT" of
            another one.
        files: dict from our split to the official file, or folder, in a `data_dir`.
        scores: names of the scores that are reported.
        best_by: str. The score that selects the weights; "mean": the mean of `scores`.
        has_unanswerable: bool. Of questions, whether some have no answer.
        max_choice_length: int. Of choices, the tokens that are kept of each; None: all.
        read_file: callable from a path to rows, dicts with TFDS's names.
        convert: callable from a row, of a file or of TFDS, to a list of examples,
            dicts; ValueError: what is wrong with the row.
    """

    name: str
    kind: str
    labels: tuple | None = None
    builder: str | None = None
    splits: dict = dataclasses.field(default_factory=dict)
    files: dict
    scores: tuple
    best_by: str
    has_unanswerable: bool = False
    max_choice_length: int | None = None
    read_file: Callable
    convert: Callable

    @property
    def has_own_classes(self):
        """Whether the classes are for the user to name, or for his data."""
        return self.kind == "tags" and self.labels is None

    def source(self, split, data_dir=None):
        """Where a split is: a path below `data_dir`, or "tfds:BUILDER:SPLIT".

        Raises:
            UsageError: if the data set has no such split there.
        """
        if data_dir is None and self.builder is None:
            raise UsageError(f"{self.name} is not in TFDS; name its folder, data_dir")
        known = self.splits if data_dir is None else self.files
        if split not in known:
            where = "in TFDS" if data_dir is None else "among its files"
            raise UsageError(
                f"{self.name} has no split {split!r} {where}; it has "
                f"{sources.listed(known)}"
            )
        if data_dir is not None:
            return os.path.join(data_dir, known[split])
        name = known[split]
        return f"tfds:{name}" if ":" in name else f"tfds:{self.builder}:{name}"

    def read(self, source, needs_labels=True):
        """The examples of a source, of this data set's layout.

        Args:
            source: str. A path, or "tfds:BUILDER:SPLIT".
            needs_labels: bool. False: answers may be hidden.

        Returns:
            `TaskExamples`, in the order of the source.

        Raises:
            UsageError: for a missing or empty source, or an example that is not as the
                data set has them.
        """
        read_rows = sources.read_tfds if sources.is_tfds(source) else self.read_file
        examples = flat_map(source, read_rows(source), self.convert)
        if not examples:
            raise UsageError(f"{source} has no examples of {self.name}")
        columns = {
            name: [example[name] for example in examples]
            for name in examples[0]
            if all(name in example for example in examples)
        }
        answers = ANSWERS[self.kind]
        if needs_labels and answers not in columns:
            row = next(n for n, one in enumerate(examples) if answers not in one)
            raise UsageError(f"{source} has no {answers} in example {row + 1}")
        for name in ("id", "document") if self.kind == "tags" else ("id",):
            columns.setdefault(name, list(range(len(examples))))
        return TaskExamples(source, columns)


def flat_map(source, rows, function):
    """What `function` makes of each row, a list, all in one list.

    Raises:
        UsageError: for its ValueErrors, with the source and the row.
    """
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.extend(function(row))
        except ValueError as error:
            raise UsageError(f"{source}, row {number}: {error}") from None
    return found


def field(row, name, kind=str):
    """`row[name]`.

    Raises:
        ValueError: if the row is no dict, lacks it, or has it as another kind.
    """
    if not isinstance(row, dict):
        raise ValueError(f"an object with {name!r} is needed. Found: {row!r:.60}")
    if name not in row:
        raise ValueError(f"no {name!r}; found: {sources.listed(row)}")
    if not isinstance(row[name], kind):
        raise ValueError(f"{name!r} must be {kind.__name__}. Found: {row[name]!r:.60}")
    return row[name]


def identity(row, name="idx"):
    """{"id": `row[name]`}; {} where the source has none."""
    return {"id": row[name]} if name in row else {}


def class_label(row, labels):
    """{"label": name of the row's class}; {} where it is hidden.

    JSON's true and TFDS's "True" are both "true".

    Raises:
        ValueError: if it is none of the classes.
    """
    label = row.get("label")
    if label in (None, -1):
        return {}
    name = str(label).lower() if isinstance(label, bool | str) else label
    if name not in labels:
        raise ValueError(f"label {label!r} is none of {sources.listed(labels)}")
    return {"label": name}


def number_label(row):
    """{"label": the row's number}; {} where it is hidden, as a negative one.

    Raises:
        ValueError: if it is no finite number.
    """
    label = row.get("label")
    if label is None:
        return {}
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"label {label!r} is no finite number")
    return {"label": number} if number >= 0 else {}


def text_examples(row, texts, labels):
    """The example of a row of one text or two, in a list.

    Args:
        row: dict.
        texts: names of the segments, in the official order.
        labels: names of the classes; None: labels are numbers.
    """
    example = identity(row)
    for segment, name in zip(("text", "text_pair"), texts, strict=False):
        example[segment] = field(row, name)
    label = number_label(row) if labels is None else class_label(row, labels)
    return [{**example, **label}]


def check_span(text, start, end):
    """(start, end).

    Raises:
        ValueError: if it is no place in the text.
    """
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"characters {start} to {end} are no place in a text of {len(text)}"
        )
    return start, end
