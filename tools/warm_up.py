"""Requests that TF Serving replays when it loads a model: one for each length served.

Without them the first requests pay for what a session sets up at its first run, which
is seconds.
"""

import itertools
import os

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from deberta_tf.packing import LENGTH_STEP
from deberta_tf.preprocessing import INPUTS
from tools import serving_requests

NUM_CHOICES = 4
# TF Serving refuses a version with more (saved_model_warmup.md).
MAX_RECORDS = 1000
FILLER = (
    "The ferry left the harbour a little after six, with forty people and two dogs on "
    "board. Nobody had told the new captain that the lamp at the end of the pier was "
    "broken, so he waited until the fog was gone. In the evening a letter came from "
    "the town hall: the old bridge would be closed for a week, and the market moved "
    "to the square behind the church. Her sister wrote the date down and asked what "
    "it would cost to repair the roof before winter."
).split()


def served_lengths(sequence_length):
    """Tokens of the rows that are served, ascending: list of int."""
    return [*range(LENGTH_STEP, sequence_length, LENGTH_STEP), sequence_length]


def batch_sizes(max_rows):
    """Powers of two up to `max_rows`, a power of two."""
    return [2**power for power in range(max_rows.bit_length())]


def read_graph(folder):
    """The MetaGraphDef of a SavedModel."""
    with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
        (graph,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    return graph


def read_signatures(folder):
    """{name: SignatureDef} of a SavedModel, of the signatures that take inputs."""
    return {
        name: signature
        for name, signature in sorted(read_graph(folder).signature_def.items())
        if signature.inputs
    }


def write(task, folder, model, max_rows):
    """Writes the warm-up records of a task that was exported.

    Args:
        task: as it was exported.
        folder: str, that of the version.
        model: str, the name that it is served by.
        max_rows: int, a power of two. Rows that are run together at most.
    """
    requests = make_requests(task, read_signatures(folder), model, max_rows)
    path = os.path.join(folder, serving_requests.WARM_UP_PATH)
    serving_requests.write_requests(path, requests)


def make_requests(task, signatures, model, max_rows):
    """A `PredictRequest` for each signature, length and batch size of `plan`.

    A signature of tf.Examples ("classify", "regress") is warmed by `PredictRequest`s
    as well: TF Serving takes these for it, and runs the same graph.

    Args:
        task: with a preprocessor.
        signatures: dict of SignatureDef, as `read_signatures` gives them.
        model: str.
        max_rows: int, a power of two.

    Returns:
        list, those of one signature after the other.
    """
    sequence_length = task.preprocessor.sequence_length
    lengths = served_lengths(sequence_length)
    examples = {}
    requests = []
    for name, signature in signatures.items():
        names = sorted(signature.inputs)
        is_ids, is_serialized = "token_ids" in names, names == ["inputs"]
        if is_ids or is_serialized:
            # "classify_pairs" takes the features that "text_pairs" takes as inputs.
            like = "text_pairs" if name.endswith("_pairs") else "serving_default"
            raw = tuple(sorted(signatures[like].inputs))
        else:
            raw = tuple(names)
        if raw not in examples:
            examples[raw] = examples_of_lengths(task.preprocessor, raw, lengths)
        for length, rows in plan(lengths, max_rows, len(signatures)):
            example = examples[raw][length]
            if is_ids:
                inputs = id_inputs(task, [example] * rows, length)
            elif is_serialized:
                inputs = {"inputs": [serialized(example)] * rows}
            else:
                inputs = {key: [value] * rows for key, value in example.items()}
            tensors = {
                key: tf.constant(inputs[key], tf.as_dtype(signature.inputs[key].dtype))
                for key in names
            }
            requests.append(serving_requests.predict_request(model, tensors, name))
    return requests


def plan(lengths, max_rows, num_signatures):
    """(length, rows) of the requests of each of some signatures.

    One row of every length; the shortest in every batch size; and the longest in the
    largest, so that a memory limit too small for it shows while the model loads, not
    under load. All sizes of all lengths would be minutes for a large model, and what
    they would set up beyond that is milliseconds. Of very long rows not every length
    has its record, as all signatures together have `MAX_RECORDS`: 512 tokens and 4
    signatures are about 80.
    """
    sizes = batch_sizes(max_rows)
    count = min(len(lengths), MAX_RECORDS // num_signatures - len(sizes))
    kept = np.unique(np.linspace(0, len(lengths) - 1, count).astype(int))
    shortest = [(lengths[0], rows) for rows in sizes]
    alone = [(lengths[i], 1) for i in kept]
    return list(dict.fromkeys([*alone, *shortest, (lengths[-1], sizes[-1])]))


def examples_of_lengths(preprocessor, names, lengths):
    """{length: example} whose rows are filled up to that length and to no other.

    Args:
        preprocessor: of the task.
        names: the inputs of a signature.
        lengths: ascending list of int, the last the preprocessor's.
    """
    # A word is a token or more.
    examples = [example(names, count) for count in range(1, lengths[-1] + 1)]
    tokens = count_tokens(preprocessor, examples)
    found = {}
    for below, length in itertools.pairwise([0, *lengths]):
        inside = [i for i, count in enumerate(tokens) if below < count <= length]
        # A row that is full may have lost tokens: such a text goes on in another one.
        whole = [i for i in inside if tokens[i] < lengths[-1]]
        found[length] = examples[whole[-1] if whole else inside[0]]
    return found


def example(names, num_words):
    """Values of a signature's inputs, whose long text has so many words.

    Args:
        names: names of inputs of a signature of strings.
        num_words: int.

    Returns:
        dict of str, of lists of str, and of lists of int, the characters of spans.
    """
    words = list(itertools.islice(itertools.cycle(FILLER), num_words))
    # The first word, and the second where there is one.
    first, second = words[0], words[1 % num_words]
    at = len(first) + 1 if num_words > 1 else 0
    # In a pair, the second span is one of its second text.
    spans = [(0, len(first)), (at, at + len(second))]
    if "text_pair" in names:
        spans[1] = spans[0]
    starts, ends = (list(side) for side in zip(*spans, strict=True))
    text = " ".join(words)
    values = {
        "text": text,
        "text_pair": text,
        "context": text,
        "passage": text,
        "words": words,
        "question": "Who left?",
        "query": "@placeholder left",
        "choices": [f"{word} left" for word in FILLER[:NUM_CHOICES]],
        "span_starts": starts,
        "span_ends": ends,
        "entity_starts": starts,
        "entity_ends": ends,
    }
    return {name: values[name] for name in names}


def count_tokens(preprocessor, examples):
    """Tokens of the rows of examples, of several rows the longest: list of int."""
    mask = preprocessor(as_raw_inputs(examples))["padding_mask"]
    counts = tf.reduce_sum(mask, axis=-1).numpy()
    return counts.reshape(len(examples), -1).max(axis=-1).tolist()


def as_raw_inputs(examples):
    """Examples as the preprocessor of their task takes a batch of them."""
    batch = {
        name: tf.ragged.constant(values)
        if name == "words"
        else tf.constant(values, tf.string if _holds_text(values[0]) else tf.int32)
        for name in examples[0]
        for values in [[one[name] for one in examples]]
    }
    if any(name.endswith("_starts") for name in batch):
        return batch
    # Questions before contexts, texts before pairs and choices.
    order = ("question", "context", "text", "text_pair", "choices", "words")
    values = tuple(batch[name] for name in order if name in batch)
    return values if len(values) > 1 else values[0]


def _holds_text(value):
    return isinstance(value, str) or isinstance(value[0], str)


def id_inputs(task, examples, length):
    """The inputs of the model for raw examples, rows cut to a length: dict of arrays.

    The examples' rows are no longer than that.
    """
    packed = task.preprocessor(as_raw_inputs(examples))
    return {
        name: np.asarray(ids)[..., :length] if name in INPUTS else np.asarray(ids)
        for name, ids in task.inputs_in(packed).items()
    }


def serialized(values):
    """An example as a serialized tf.Example, bytes."""
    features = {}
    for name, value in values.items():
        value = value if isinstance(value, list) else [value]
        if isinstance(value[0], str):
            data = tf.train.BytesList(value=[one.encode() for one in value])
            features[name] = tf.train.Feature(bytes_list=data)
        else:
            data = tf.train.Int64List(value=value)
            features[name] = tf.train.Feature(int64_list=data)
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString()
