"""Hostile requests to a served model: an answer, or one clear error, never a crash."""

import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from tests import native_host
from tests.native_host import QUESTIONS, TEXTS, lines_of, replay, run
from tools.serving_requests import predict_request, write_requests

pytestmark = pytest.mark.native

TEXT = TEXTS[0]
# Texts that are answered.
HARD = {
    "empty": [""],
    "long": ["harbour " * 131072],
    "long_word": ["x" * (1 << 20)],
    "invalid_utf8": [b"\xff\xfe caf\xe9 \xed\xa0\x80"],
    "control": ["\x00\x01\x1b[0m\n\t\x7f\u202e"],
    "mask": ["the [MASK] sold [CLS] the [SEP] harbour [PAD]"],
    "emoji": ["\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 na\u00efve"],
    "thousand": [TEXT] * 1000,
    "mixed": [TEXT.encode(), b"\xff", b"", b"harbour " * 1000],
}


def request_of(inputs, signature="serving_default"):
    return predict_request("served", inputs, signature)


def reshaped(size):
    """A request whose tensor claims another size than that of what it holds."""
    request = request_of({"text": [TEXT]})
    request.inputs["text"].tensor_shape.dim[0].size = size
    return request


def retyped(dtype):
    request = request_of({"text": [TEXT]})
    request.inputs["text"].dtype = dtype
    return request


def ids_of(**changed):
    ids = {
        "token_ids": [[1, 5, 2]],
        "padding_mask": [[1] * 3],
        "segment_ids": [[0] * 3],
    }
    numbers = {**ids, **changed}
    arrays = {name: np.array(one, np.int32) for name, one in numbers.items()}
    return request_of(arrays, "token_ids")


# Requests that are refused, and what is told.
WRONG = {
    "dtype": (
        request_of({"text": [1, 2]}),
        "input 'text' must be string [?]. Found: int32 [2]",
    ),
    "scalar": (request_of({"text": TEXT}), "Found: string []"),
    "rank": (request_of({"text": [[TEXT]]}), "Found: string [1,1]"),
    "missing": (request_of({}), "text(feed name: serving_default_text:0) not found"),
    "misnamed": (request_of({"texts": [TEXT]}), "{texts}"),
    "unknown": (
        request_of({"text": [TEXT], "texts": [TEXT]}),
        "Inputs contains invalid name. Used request inputs: text, request input: "
        "text,texts",
    ),
    "signature": (
        request_of({"text": [TEXT]}, "nothing"),
        "signature 'nothing' is unknown; there are: ",
    ),
    "negative_size": (reshaped(-1), "tensor parsing error: text"),
    "huge_size": (reshaped(1 << 62), "tensor parsing error: text"),
    "no_such_dtype": (retyped(999), "tensor parsing error: text"),
    "pair_of_other_size": (
        request_of({"text": [TEXT, TEXT], "text_pair": [TEXT]}, "text_pairs"),
        "",
    ),
    "ids_of_other_length": (ids_of(padding_mask=[[1, 1]]), ""),
    "id_beyond_the_vocabulary": (ids_of(token_ids=[[1, 2000, 2]]), "2000 is not in"),
    # Those just below 0 count from the end, as Keras takes them.
    "id_far_below_zero": (ids_of(token_ids=[[1, -2000, 2]]), "is not in"),
}
GOOD = request_of({"text": [TEXT]})


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_proto):
    return deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    task = native_host.text_classifier(tokenizer)
    return task.export_for_serving(str(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def requests():
    hard = {name: request_of({"text": texts}) for name, texts in HARD.items()}
    wrong = {name: request for name, (request, _) in WRONG.items()}
    return {"first": GOOD, **hard, **wrong, "last": GOOD}


@pytest.fixture(scope="module")
def lines(folder, requests, tmp_path_factory):
    """What one process of the host answered to all, by their names."""
    path = tmp_path_factory.mktemp("faults") / "requests"
    found = replay(folder, path, requests.values())
    return dict(zip(requests, found, strict=True))


def scores(line):
    output = line["outputs"]["scores"]
    return np.reshape(output["values"], output["shape"])


@pytest.mark.parametrize("name", HARD)
def test_a_hard_text_is_answered(lines, name):
    line = lines[name]
    assert line["status"] == "OK"
    assert scores(line).shape == (len(HARD[name]), 3)
    assert np.all(np.isfinite(scores(line)))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_clear_error(lines, name):
    line = lines[name]
    assert line["status"] == "INVALID_ARGUMENT"
    assert WRONG[name][1] in line["message"]
    assert line["message"]
    assert "outputs" not in line


def test_after_all_of_them_the_host_answers_as_before(lines):
    assert lines["last"]["status"] == "OK"
    np.testing.assert_allclose(scores(lines["last"]), scores(lines["first"]), atol=1e-6)


def test_the_graph_alone_refuses_or_answers_all(folder, requests, tmp_path):
    # TF Serving has no check of dtypes and shapes.
    found = replay(folder, tmp_path / "requests", requests.values(), "--unchecked")
    found = dict(zip(requests, found, strict=True))
    assert {line["status"] for line in found.values()} == {"OK", "INVALID_ARGUMENT"}
    assert found["dtype"]["status"] == "INVALID_ARGUMENT"
    assert "string but int32 is provided" in found["dtype"]["message"]
    np.testing.assert_allclose(scores(found["last"]), scores(found["first"]), atol=1e-6)


@pytest.mark.parametrize(
    "make_task",
    [native_host.text_classifier, *QUESTIONS],
    ids=lambda task: task.__name__,
)
def test_a_batch_of_nothing_is_answered_with_nothing(make_task, tokenizer, tmp_path):
    folder = make_task(tokenizer).export_for_serving(str(tmp_path / "served"))
    inputs = QUESTIONS.get(make_task, {"text": TEXTS})
    nothing = {name: tf.constant(one)[:0] for name, one in inputs.items()}
    requests = [request_of(nothing), request_of(inputs)]
    empty, full = replay(folder, tmp_path / "requests", requests)
    assert empty["status"] == "OK", empty["message"]
    for output in empty["outputs"].values():
        assert output["shape"][0] == 0
        assert output["values"] == []
    assert full["status"] == "OK"


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(folder, tmp_path):
    texts = [text.encode() for text in (*TEXTS, "\U0001f600", "harbour " * 5000)]
    texts.append(b"\xff\x00")
    requests = [request_of({"text": one}) for one in (texts, *([one] for one in texts))]
    together, *alone = replay(folder, tmp_path / "requests", requests)
    expected = np.concatenate([scores(line) for line in alone])
    np.testing.assert_allclose(scores(together), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "words"),
    [(5, "its PredictionLog can't be parsed"), (0, "the record has no predict_log")],
)
def test_a_record_that_is_cut_off_is_one_clear_error(folder, tmp_path, size, words):
    path = str(tmp_path / "requests")
    write_requests(path, [GOOD])
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(record[:size])
        writer.write(record)
    broken, good = lines_of(run(folder, "replay", path))
    assert broken["status"] == "INVALID_ARGUMENT"
    assert words in broken["message"]
    assert good["status"] == "OK"


def test_a_record_cut_off_anywhere_is_refused_or_answered(folder, tmp_path):
    path = str(tmp_path / "requests")
    write_requests(path, [GOOD])
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    with tf.io.TFRecordWriter(path) as writer:
        for size in range(len(record)):
            writer.write(record[:size])
    found = lines_of(run(folder, "replay", path))
    assert len(found) == len(record)
    assert {line["status"] for line in found} == {"INVALID_ARGUMENT"}
