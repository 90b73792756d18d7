"""What lines a signature takes, how they share batches, and what answers become."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from deberta_tf.files import UsageError
from tools import serving_examples
from tools.serving_examples import Signature

PREDICT = "tensorflow/serving/predict"


def specs(**shapes):
    """{name: `tf.TensorSpec`} of (dtype, shape) without the batch's axis."""
    return {
        name: tf.TensorSpec([None, *shape], dtype, name=name)
        for name, (dtype, shape) in shapes.items()
    }


TEXT = Signature("text", specs(text=(tf.string, [])), specs(score=(tf.float32, [])))
WORDS = Signature(
    "words",
    specs(words=(tf.string, [None])),
    specs(labels=(tf.string, [None]), scores=(tf.float32, [None])),
)
CHOICES = Signature(
    "choices",
    specs(text=(tf.string, []), choices=(tf.string, [None])),
    specs(scores=(tf.float32, [None])),
)
ENTITIES = Signature(
    "entities",
    specs(entity_starts=(tf.int32, [None]), entity_ends=(tf.int32, [None])),
    specs(entity=(tf.int64, []), scores=(tf.float32, [None])),
)
SPANS = Signature("spans", specs(span_starts=(tf.int32, [2])), {})
NUMBERS = Signature("numbers", specs(x=(tf.float32, []), is_new=(tf.bool, [])), {})


def examples_of(signature, *values):
    return serving_examples.to_examples(
        "data.jsonl", list(enumerate(values, start=1)), signature
    )


def stacked(signature, *values, batch_size=32):
    examples = examples_of(signature, *values)
    return [
        {name: array.tolist() for name, array in serving_examples.stack(batch).items()}
        for batch in serving_examples.batches(examples, batch_size)
    ]


@pytest.mark.parametrize(
    ("signature", "value", "message"),
    [
        (TEXT, {"txt": "a"}, "there is no 'text'; signature 'text' takes 'text'"),
        (TEXT, {"text": "a", "pair": 1}, "'pair' is unknown; signature 'text' takes"),
        (TEXT, {"text": None}, "'text' must be of type string. Found: None"),
        (TEXT, {"text": ["a"]}, "must be of type string. Found: ..a"),
        (TEXT, {"text": "\ud800"}, "must be of type string"),
        (WORDS, {"words": "a b"}, "must be a list of string values. Found: 'a b'"),
        (WORDS, {"words": ["a", 1]}, "must be a list of string values"),
        (WORDS, {"words": [["a"]]}, "must be a list of string values"),
        (CHOICES, "a", "takes 'text', 'choices': an object. Found: 'a'"),
        (SPANS, [1, 2, 3], r"must be a list of int32 values, shape \(2,\)"),
        (SPANS, [1, 2.0], "must be a list of int32"),
        (SPANS, [1, True], "must be a list of int32"),
        (SPANS, [1, 2**31], "must be a list of int32"),
        (NUMBERS, {"x": "1", "is_new": True}, "'x' must be of type float32"),
        (NUMBERS, {"x": 1, "is_new": 1}, "'is_new' must be of type boolean"),
        (
            ENTITIES,
            {"entity_starts": [0], "entity_ends": [1, 2]},
            "must be of one length. Found: .'entity_starts': 1, 'entity_ends': 2",
        ),
    ],
)
def test_what_a_signature_does_not_take_is_named(signature, value, message):
    with pytest.raises(UsageError, match=f"data.jsonl, line 1: .*{message}"):
        examples_of(signature, value)


def test_whole_numbers_are_floats_too():
    (batch,) = stacked(NUMBERS, {"x": 1, "is_new": False}, {"x": 0.5, "is_new": True})
    assert batch == {"x": [1.0, 0.5], "is_new": [False, True]}


def test_words_and_entities_fill_up_a_batch():
    assert stacked(WORDS, ["a", "b"], [], ["c"]) == [
        {"words": [["a", "b"], ["", ""], ["c", ""]]}
    ]
    assert stacked(
        ENTITIES,
        {"entity_starts": [3], "entity_ends": [5]},
        {"entity_starts": [1, 7], "entity_ends": [2, 9]},
    ) == [{"entity_starts": [[3, 0], [1, 7]], "entity_ends": [[5, 0], [2, 9]]}]


def test_only_as_many_choices_share_a_batch():
    values = [{"text": "t", "choices": ["a"] * count} for count in (2, 2, 3, 2)]
    batches = stacked(CHOICES, *values)
    assert [len(batch["text"]) for batch in batches] == [2, 1, 1]


def test_batches_hold_the_examples_in_order():
    batches = stacked(TEXT, *"abcde", batch_size=2)
    assert [batch["text"] for batch in batches] == [["a", "b"], ["c", "d"], ["e"]]


def test_answers_to_what_fills_up_are_cut_off():
    batch = examples_of(WORDS, {"words": ["a"], "id": "x"}, ["b", "c"])
    outputs = {
        "labels": np.array([["O", ""], ["B", "O"]], dtype=object),
        "scores": np.array([[0.1, 0.0], [0.7, 0.9]], np.float32),
    }
    assert serving_examples.answers(batch, outputs, WORDS) == [
        {"id": "x", "labels": ["O"], "scores": [0.1]},
        {"labels": ["B", "O"], "scores": [0.7, 0.9]},
    ]


def test_floats_are_written_as_the_shortest_that_read_the_same():
    values = np.array([0.1, 1 / 3, 1e-9, 16777216, np.nan], np.float32)
    batch = examples_of(TEXT, *"abcde")
    answers = serving_examples.answers(batch, {"score": values}, TEXT)
    assert json.dumps([answer["score"] for answer in answers]) == (
        "[0.1, 0.33333334, 1e-09, 16777216.0, NaN]"
    )


@pytest.mark.parametrize("outputs", [{}, {"score": np.zeros(3)}])
def test_an_answer_without_a_row_for_each_example_is_refused(outputs):
    with pytest.raises(
        ValueError, match="answer to 2 examples has not as many rows of"
    ):
        serving_examples.answers(examples_of(TEXT, "a", "b"), outputs, TEXT)


def test_signatures_for_other_methods_are_not_offered():
    signature_defs = {
        name: meta_graph_pb2.SignatureDef(method_name=method)
        for name, method in [
            ("serving_default", PREDICT),
            ("classify", "tensorflow/serving/classify"),
            ("__saved_model_init_op", ""),
        ]
    }
    with pytest.raises(
        UsageError,
        match="no signature 'classify' for Predict. It has: 'serving_default'$",
    ):
        serving_examples.find_signature(signature_defs, "classify")
