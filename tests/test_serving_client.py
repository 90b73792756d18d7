"""The client of TF Serving, over real sockets; `stand_in_server` says what answers."""

import contextlib
import io
import json
import socket
import sys

import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf.files import UsageError, run_command
from tests.small_models import make_backbone, randomize
from tests.stand_in_server import StandInServer
from tools import serving_client, serving_transports

TEXTS = ["the old captain sold the harbour.", "", "naïve « peas » 🚲", "song " * 40]
PAIRS = [{"text": one, "text_pair": two} for one, two in zip(TEXTS, TEXTS[1:] + ["x"])]
WORDS = [["the", "captain", "", "sold", "Oslo"], [], ["nobody"], ["frozen", "peas"] * 6]
QUESTIONS = [
    {"question": "who sold it?", "context": "the old captain sold the harbour " * 3},
    {"question": "", "context": "nobody"},
    {"question": "what was painted?", "context": "my sister painted « that song »"},
]
BOTH = pytest.mark.parametrize("protocol", ["grpc", "rest"])


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(serving_transports, "BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def serve(sentencepiece_proto, tmp_path_factory):
    """Serves a small task of a class, "deberta"; a context."""
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)

    def serve(task_class, **arguments):
        task = task_class(
            make_backbone(num_layers=1, max_sequence_length=64),
            preprocessor=task_class.preprocessor_cls(tokenizer, 32),
            **arguments,
        )
        randomize(task)
        folder = str(tmp_path_factory.mktemp("served"))
        task.export_for_serving(folder)
        return StandInServer("deberta", folder)

    return serve


@pytest.fixture(scope="module")
def serving(serve):
    labels = ["calm", "loud", "naïve"]
    with serve(deberta_tf.DebertaTextClassifier, labels=labels) as server:
        yield server


@pytest.fixture
def classifier(serving):
    """A server of texts that has answered nothing so far, and fails nowhere."""
    serving.requests.clear()
    yield serving
    serving.failures = 0
    serving.is_free.set()


@pytest.fixture
def ask(tmp_path):
    """Asks a server about values, each in a line; returns the answers, as dicts."""

    def ask(server, protocol, values, *flags):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps(value) + "\n" for value in values))
        address = server if isinstance(server, str) else server.address(protocol)
        command = ["--address", address, "--protocol", protocol, "--model", "deberta"]
        command += ["--input", str(source), "--output", str(output), *flags]
        serving_client.main(command)
        return [json.loads(line) for line in output.read_text().splitlines()]

    return ask


def own_answers(server, signature="serving_default", **inputs):
    """What the SavedModel answers by itself: {name: array}."""
    answer = server.versions[1].loaded.signatures[signature]
    outputs = answer(**{name: tf.constant(one) for name, one in inputs.items()})
    return {name: one.numpy() for name, one in outputs.items()}


def check_same(answers, expected):
    """Answers to examples are the rows of {name: array}, numbers within 1e-6."""
    assert {*answers[0]} == {*expected}
    for name, rows in expected.items():
        for answer, row in zip(answers, rows, strict=True):
            if rows.dtype == object:
                found = np.array(answer[name], dtype=object)
                decoded = [text.decode() for text in np.ravel(row)]
                assert np.ravel(found).tolist() == decoded
            else:
                # Shortest decimals of float32, so nothing is lost on the way.
                np.testing.assert_allclose(answer[name], row, rtol=1e-6, atol=1e-6)


@BOTH
def test_texts_get_the_answers_of_the_saved_model(classifier, ask, protocol):
    answers = ask(classifier, protocol, [{"text": text} for text in TEXTS])
    check_same(answers, own_answers(classifier, text=TEXTS))
    assert classifier.requests == [(protocol, len(TEXTS))]


@BOTH
def test_pairs_have_their_own_signature(classifier, ask, protocol):
    answers = ask(classifier, protocol, PAIRS, "--signature", "text_pairs")
    columns = {name: [pair[name] for pair in PAIRS] for name in PAIRS[0]}
    check_same(answers, own_answers(classifier, "text_pairs", **columns))


def test_both_protocols_write_the_same(classifier, ask):
    values = [{"text": text} for text in TEXTS]
    assert ask(classifier, "grpc", values) == ask(classifier, "rest", values)


def test_words_of_any_number_share_a_batch(serve, ask):
    width = max(map(len, WORDS))
    words = [row + [""] * (width - len(row)) for row in WORDS]
    with serve(deberta_tf.DebertaTokenClassifier, labels=["O", "B"]) as server:
        expected = own_answers(server, words=words)
        for protocol in ("grpc", "rest"):
            answers = ask(server, protocol, [{"words": row} for row in WORDS])
            assert server.requests.pop() == (protocol, len(WORDS))
            for row, answer in enumerate(answers):
                length = len(WORDS[row])
                cut = {
                    name: one[row : row + 1, :length] for name, one in expected.items()
                }
                check_same([answer], cut)


def test_questions_are_answered_with_text_and_characters(serve, ask):
    columns = {name: [one[name] for one in QUESTIONS] for name in QUESTIONS[0]}
    with serve(deberta_tf.DebertaQuestionAnswering) as server:
        expected = own_answers(server, **columns)
        for protocol in ("grpc", "rest"):
            check_same(ask(server, protocol, QUESTIONS), expected)


def test_ids_of_one_length_share_a_batch(classifier, ask):
    rows = [[1, 5, 2], [1, 6, 2], [1, 7, 8, 2], [1, 9, 2]]
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = classifier.versions[1].signature_defs["token_ids"].inputs
    values = [
        {
            name: row if name == "token_ids" else [1] * len(row)
            for name in names
            if name in inputs
        }
        for row in rows
    ]
    answers = ask(classifier, "rest", values, "--signature", "token_ids")
    assert classifier.requests == [("rest", 2), ("rest", 1), ("rest", 1)]
    for value, answer in zip(values, answers, strict=True):
        own = {name: np.array([row], np.int32) for name, row in value.items()}
        check_same([answer], own_answers(classifier, "token_ids", **own))
