"""Examples in JSON lines: what a signature takes of them, batches, answers."""

import contextlib
import dataclasses
import itertools
import json
import re
import sys

import numpy as np
import tensorflow as tf

from deberta_tf import files

# Rows that are filled up to the longest of a batch, and with what: of these inputs no
# answer changes. Others are batched by their shape (a choice that fills up would take
# its share of the probability).
FILLINGS = {"words": "", "entity_starts": 0, "entity_ends": 0}

PREDICT = "tensorflow/serving/predict"
# Halves of characters: JSON's escapes can write them, UTF-8 can't.
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Signature:
    name: str
    inputs: dict
    """{name: `tf.TensorSpec`}, the batch's axis included."""
    outputs: dict
    """As `inputs`."""


@dataclasses.dataclass(frozen=True)
class Example:
    line: int
    """In the file, from 1."""
    inputs: dict
    """{name: array}, without the batch's axis; strings are objects."""
    kept: dict
    """What of the line is put into its answer: its `id`, if it has one."""

    @property
    def length(self):
        """Of the rows that batches fill up; None if there are none."""
        lengths = [len(self.inputs[name]) for name in FILLINGS if name in self.inputs]
        return lengths[0] if lengths else None


def find_signature(signature_defs, name):
    """A `Signature` of a model's metadata, {name: `SignatureDef`}.

    Raises:
        UsageError: if there is none that Predict answers; it names those there are.
    """
    names = sorted(
        one for one, found in signature_defs.items() if found.method_name == PREDICT
    )
    if name not in names:
        raise files.UsageError(
            f"the model has no signature {name!r} for Predict. It has: "
            + ", ".join(map(repr, names))
        )
    found = signature_defs[name]
    return Signature(name, _specs(found.inputs), _specs(found.outputs))


def _specs(infos):
    return {
        name: tf.TensorSpec(
            tf.TensorShape(infos[name].tensor_shape), infos[name].dtype, name=name
        )
        for name in sorted(infos)
    }


def read_lines(path):
    """The JSON values of a file ("-": standard input), list of (line number, value).

    Raises:
        UsageError: if a line is not JSON in UTF-8; it names the line.
    """
    standard = contextlib.nullcontext(sys.stdin.buffer)
    values = []
    with standard if path == "-" else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                values.append((number, json.loads(line.decode("utf-8"))))
            except ValueError as error:
                raise files.UsageError(
                    f"{place(path, number)}, is not JSON: {error}. Found: "
                    f"{line.strip()!r:.60}"
                ) from None
    return values


def place(path, first, last=None):
    """Words for lines of a file."""
    name = "standard input" if path == "-" else path
    if last in (None, first):
        return f"{name}, line {first}"
    return f"{name}, lines {first}-{last}"


def to_examples(path, values, signature):
    """`Example`s of the values that `read_lines` gives of a file.

    Raises:
        UsageError: if one is not what the signature takes; it names the line.
    """
    examples = []
    for line, value in values:
        try:
            examples.append(_to_example(line, value, signature))
        except ValueError as error:
            raise files.UsageError(f"{place(path, line)}: {error}") from None
    return examples


def _to_example(line, value, signature):
    names = list(signature.inputs)
    takes = f"signature {signature.name!r} takes {', '.join(map(repr, names))}"
    if not isinstance(value, dict):
        if len(names) > 1:
            raise ValueError(f"{takes}: an object. Found: {value!r:.60}")
        value = dict.fromkeys(names, value)
    for name in names:
        if name not in value:
            raise ValueError(f"there is no {name!r}; {takes}")
    for name in value:
        if name not in (*names, "id"):
            raise ValueError(f"{name!r} is unknown; {takes}")
    inputs = {name: _to_array(value[name], signature.inputs[name]) for name in names}
    filled = {name: len(inputs[name]) for name in FILLINGS if name in inputs}
    if len({*filled.values()}) > 1:
        raise ValueError(f"lists must be of one length. Found: {filled}")
    is_kept = "id" in value and "id" not in names
    return Example(line, inputs, {"id": value["id"]} if is_kept else {})


def _to_array(value, spec):
    """Of JSON, an array as a spec has it without its first axis."""
    shape, dtype = spec.shape[1:], spec.dtype
    # Lists of unequal lengths stay lists, which are no value of any dtype.
    array = np.array(value, dtype=object)
    if not shape.is_compatible_with(array.shape) or not all(
        _is_value(one, dtype) for one in array.flat
    ):
        raise ValueError(
            f"{spec.name!r} must be {_describe(shape, dtype)}. Found: {value!r:.60}"
        )
    return array if dtype == tf.string else array.astype(dtype.as_numpy_dtype)


def _is_value(value, dtype):
    """Whether a value of JSON is one of a dtype, without loss."""
    if dtype == tf.string:
        return isinstance(value, str) and not _SURROGATES.search(value)
    if dtype == tf.bool or isinstance(value, bool):
        return dtype == tf.bool and isinstance(value, bool)
    if dtype.is_floating and isinstance(value, float):
        return True
    return isinstance(value, int) and dtype.min <= value <= dtype.max


def _describe(shape, dtype):
    one = {tf.string: "string", tf.bool: "boolean"}.get(dtype, dtype.name)
    if not shape.rank:
        return f"of type {one}"
    lists = "a list " + "of lists " * (shape.rank - 1) + f"of {one} values"
    return f"{lists}, shape {shape}" if any(shape) else lists


def batches(examples, batch_size):
    """Lists of consecutive examples, each of inputs that can be one tensor."""

    def shapes(example):
        return [
            array.shape[1:] if name in FILLINGS else array.shape
            for name, array in example.inputs.items()
        ]

    for _, group in itertools.groupby(examples, shapes):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def stack(batch):
    """{name: array (b, ...)} of a batch, rows filled up where `FILLINGS` says so."""
    return {
        name: _stack([example.inputs[name] for example in batch], FILLINGS.get(name))
        for name in batch[0].inputs
    }


def _stack(arrays, filling):
    if filling is None:
        return np.stack(arrays)
    shape = (len(arrays), max(map(len, arrays)), *arrays[0].shape[1:])
    stacked = np.full(shape, filling, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def answers(batch, outputs, signature):
    """Of each example of a batch a dict for JSON: its id and its named outputs.

    What answers the filled-up end of a row is cut off.

    Args:
        batch: list of `Example`.
        outputs: {name: array (b, ...)}; strings are objects.
        signature: `Signature`.

    Raises:
        ValueError: if the outputs are not the signature's, a row an example.
    """
    for name in signature.outputs:
        if name not in outputs or outputs[name].shape[:1] != (len(batch),):
            raise ValueError(
                f"the server's answer to {len(batch)} examples has not as many rows of "
                f"{name!r}"
            )
    width = max(example.length or 0 for example in batch)
    columns = {name: _plain(outputs[name]) for name in signature.outputs}
    ends = {
        name
        for name, spec in signature.outputs.items()
        if spec.shape.rank > 1
        and spec.shape[1] is None
        and outputs[name].shape[1] == width
    }
    return [
        {
            **example.kept,
            **{
                name: rows[row][: example.length] if name in ends else rows[row]
                for name, rows in columns.items()
            },
        }
        for row, example in enumerate(batch)
    ]


def _plain(array):
    """Lists of an array; of float32 the shortest decimals that mean the same."""
    if array.dtype in (np.float16, np.float32):
        return array.astype(str).astype(float).tolist()
    return array.tolist()
