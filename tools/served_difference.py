"""How far the answers of a served version are from those of its task in float32."""

import dataclasses

import numpy as np
import tensorflow as tf

from deberta_tf import files
from tools import serving_examples, warm_up

BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of the answers to some examples.

    Attributes:
        examples: int, how many they are.
        largest: float. Of all numbers in answers, that are no integers.
        decided_alike: int. Examples whose texts and integers are all the same.
    """

    examples: int
    largest: float
    decided_alike: int

    def __str__(self):
        return (
            f"answers to {self.examples} examples differ by {self.largest:.2g} at "
            f"most, {self.decided_alike} of them decide the same"
        )


def read_lines(path):
    """The lines of a file of examples, before any work: as `serving_examples` has them.

    Args:
        path: str, JSON lines as `tools.serving_client` takes them; or None.

    Returns:
        list, not empty; None for no file.

    Raises:
        UsageError: if there is no line, or one is not JSON.
    """
    lines = None if path is None else serving_examples.read_lines(path)
    if lines == []:
        raise files.UsageError(f"--examples {path!r} is empty: nothing to compare on")
    return lines


def make_examples(path, lines, task):
    """`Example`s of the signature "serving_default" of a task.

    Args:
        path: str, for errors.
        lines: as `read_lines` gives them; None: sentences of every length that is
            served.
        task: with a preprocessor.

    Raises:
        UsageError: if a line is not what the signature takes.
    """
    _, specs = task.signatures()["serving_default"]
    inputs = {spec.name: spec for spec in sorted(specs, key=lambda one: one.name)}
    signature = serving_examples.Signature("serving_default", inputs, {})
    if lines is None:
        lengths = warm_up.served_lengths(task.preprocessor.sequence_length)
        found = warm_up.examples_of_lengths(task.preprocessor, tuple(inputs), lengths)
        lines = list(enumerate(found.values(), start=1))
    return serving_examples.to_examples(path, lines, signature)


def measure(task, folder, examples):
    """The `Difference` of what a version's folder answers to examples.

    Args:
        task: as it was before its weights were made others, in float32.
        folder: str.
        examples: list of `Example`, not empty.

    Raises:
        ValueError: if an answer is NaN or infinity; it names the output.
    """
    function, specs = task.signatures()["serving_default"]
    expected = tf.function(function, input_signature=specs, autograph=False)
    served = tf.saved_model.load(folder)
    largest, alike = 0.0, 0
    for batch in serving_examples.batches(examples, BATCH_SIZE):
        given = serving_examples.stack(batch)
        tensors = [tf.constant(given[one.name], one.dtype) for one in specs]
        wanted = expected(*tensors)
        found = served.signatures["serving_default"](
            **{one.name: x for one, x in zip(specs, tensors, strict=True)}
        )
        same = np.ones(len(batch), bool)
        for name, value in wanted.items():
            value, other = value.numpy(), found[name].numpy()
            if value.dtype.kind == "f":
                _check_finite(name, value, "of the preset in float32")
                _check_finite(name, other, "of the version exported")
                largest = max(largest, float(np.abs(value - other).max(initial=0.0)))
            else:
                same &= (value == other).reshape(len(batch), -1).all(axis=1)
        alike += int(same.sum())
    return Difference(len(examples), largest, alike)


def _check_finite(name, value, whose):
    if not np.isfinite(value).all():
        raise ValueError(f"{name!r} {whose} has NaN or infinity: nothing is exported")
