"""Examples as arrays, and the setup that all kinds of tasks are told of."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from deberta_tf import files
from trainers.tasks.record import ANSWERS, Record

# Examples tokenised at once.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is trained on what.

    Attributes:
        config: `FinetuneConfig`.
        record: `Record`.
        names: list of str, the classes in the order of the logits; None: a regression,
            or a kind without classes.
    """

    config: object
    record: Record
    names: list | None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows for the model.

    Attributes:
        inputs: dict of arrays (n, …), the model's inputs.
        targets: array (n, …); None: the labels are hidden.
        weights: float32 (n, …), of the targets; None: each row counts the same.
        places: what leads from rows back to examples.
        expand: callable from a batch of `inputs` to what the model takes; None: they
            are that.
    """

    inputs: dict
    targets: np.ndarray | None = None
    weights: np.ndarray | None = None
    places: object = None
    expand: Callable | None = None

    def __len__(self):
        return len(self.inputs["token_ids"])

    def digest(self):
        """SHA-256 of ids and targets, hex."""
        summary = hashlib.sha256(self.inputs["token_ids"].tobytes())
        summary.update(self.targets.tobytes())
        return summary.hexdigest()

    def model_inputs(self, batch):
        """What the model takes, of a batch of `inputs`."""
        return batch if self.expand is None else self.expand(batch)


def in_chunks(pack, *columns):
    """Packs examples chunk by chunk.

    Args:
        pack: callable from parts of the columns to a dict of tensors of equally many
            rows. An entry "example" holds the rows' examples, counted in the part.
        columns: lists of the same length.

    Returns:
        dict of arrays, joined; "example" counted over all.
    """
    parts = []
    for start in range(0, len(columns[0]), CHUNK):
        packed = pack(*(column[start : start + CHUNK] for column in columns))
        part = {name: np.asarray(value) for name, value in packed.items()}
        if "example" in part:
            part["example"] = part["example"] + start
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def answer_column(setup, examples):
    """The column of the answers, None where they are hidden."""
    return examples.columns.get(ANSWERS[setup.record.kind])


def class_ids(setup, examples):
    """The labels as class ids, int32 (n,); None: hidden.

    Raises:
        UsageError: for a label that is none of the classes.
    """
    labels = answer_column(setup, examples)
    if labels is None:
        return None
    ids = {name: index for index, name in enumerate(setup.names)}
    for row, label in enumerate(labels):
        if label not in ids:
            raise files.UsageError(
                f"{examples.source} has label {label!r} in row {row + 1}; "
                f"the declared labels are {', '.join(map(repr, setup.names))}"
            )
    return np.array([ids[label] for label in labels], np.int32)


def accuracies_by(column, is_right, examples):
    """{f"accuracy_{group}": float}, of the groups that a column of examples tells.

    Args:
        column: str.
        is_right: bool (n,), which of the first examples are answered rightly.
        examples: `TaskExamples`.
    """
    of_example = np.array(examples.columns.get(column, [])[: len(is_right)])
    return {
        f"accuracy_{group}": float(is_right[of_example == group].mean())
        for group in sorted({*of_example.tolist()})
    }


def softmax(logits):
    """float64, over the last axis."""
    shares = np.exp(logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def named_shares(names, shares):
    """{name: probability}, six digits."""
    return dict(zip(names, np.round(shares, 6).tolist(), strict=True))
