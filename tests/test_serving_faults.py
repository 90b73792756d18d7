"""Hostile requests to served models: an answer, or one clear error, never a crash."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.native_host import lines_of, replay, run
from tests.served_tasks import KINDS, TEXTS
from tools.serving_requests import predict_request, write_requests

pytestmark = pytest.mark.native
pytest_plugins = "tests.served_fixtures"

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
# Where they are put, the other inputs being right.
PLACES = {
    "text_classifier": ["text"],
    "byte_pair_classifier": ["text"],
    "regression": ["text"],
    "token_classifier": ["words"],
    "question_answering": ["question", "context"],
    "multiple_choice": ["text", "choices"],
    "entity_scorer": ["passage", "query"],
    "span_classifier": ["text"],
}


def request_of(inputs, signature="serving_default"):
    return predict_request("served", inputs, signature)


def hard_request(served, place, texts):
    """A request with texts in one of its inputs, and the first example's others."""
    inputs, _ = served.asked["serving_default"]
    inputs = {name: [rows[0]] * len(texts) for name, rows in inputs.items()}
    # A tensor of both str and bytes can't be made.
    texts = [tf.compat.as_bytes(text) for text in texts]
    rows = {"words": words_of, "choices": choices_of}.get(place, list)(texts)
    inputs[place] = tf.constant(rows, tf.string)
    return request_of(inputs)


def words_of(texts):
    rows = [text.split() for text in texts]
    width = max(map(len, rows))
    return [row + [b""] * (width - len(row)) for row in rows]


def choices_of(texts):
    return [[text, b"no"] for text in texts]


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
        "must be equally many",
    ),
    "ids_of_other_length": (
        ids_of(padding_mask=[[1, 1]]),
        "Incompatible shapes: [1,3,16] vs. [1,2,1]",
    ),
    "id_beyond_the_vocabulary": (ids_of(token_ids=[[1, 2000, 2]]), "2000 is not in"),
    # Those just below 0 count from the end, as Keras takes them.
    "id_far_below_zero": (ids_of(token_ids=[[1, -2000, 2]]), "is not in"),
}
GOOD = request_of({"text": [TEXT]})


# Texts and what belongs to each, of other numbers.
UNEQUAL = {
    "byte_pair_classifier": ("text_pairs", "text_pair"),
    "regression": ("text_pairs", "text_pair"),
    "question_answering": ("serving_default", "context"),
    "multiple_choice": ("serving_default", "choices"),
    "entity_scorer": ("serving_default", "query"),
    "span_classifier": ("text_pairs", "text_pair"),
}


def faults_of(served):
    """{name: (request, what is told)} of any kind of task."""
    inputs, _ = served.asked["serving_default"]
    name, *_ = inputs
    misnamed = {f"{key}s" if key == name else key: inputs[key] for key in inputs}
    scalar = {**inputs, name: TEXT}
    numbers = {**inputs, name: np.zeros(np.shape(inputs[name]), np.int32)}
    return {
        "dtype": (request_of(numbers), f"input '{name}' must be string"),
        "scalar": (request_of(scalar), "Found: string []"),
        "misnamed": (request_of(misnamed), f"alias: {name}("),
        "nothing": (request_of({}), "not found"),
    }


@pytest.fixture
def folder(exported):
    return exported("text_classifier")[1]


@pytest.fixture(scope="module")
def hard_lines(exported, tmp_path_factory):
    """Gives of a kind {(place, name): what one process of the host answered}."""
    path = tmp_path_factory.mktemp("hard") / "requests"

    @functools.cache
    def answer(kind):
        served, folder = exported(kind)
        keys = [(place, name) for place in PLACES[kind] for name in HARD]
        requests = [hard_request(served, place, HARD[name]) for place, name in keys]
        return dict(zip(keys, replay(folder, path, requests), strict=True))

    return answer


@pytest.fixture(scope="module")
def requests(exported):
    served, _ = exported("text_classifier")
    hard = {name: hard_request(served, "text", texts) for name, texts in HARD.items()}
    wrong = {name: request for name, (request, _) in WRONG.items()}
    return {"first": GOOD, **hard, **wrong, "last": GOOD}


@pytest.fixture(scope="module")
def lines(exported, requests, tmp_path_factory):
    """What one process of the host answered to all, by their names."""
    path = tmp_path_factory.mktemp("faults") / "requests"
    found = replay(exported("text_classifier")[1], path, requests.values())
    return dict(zip(requests, found, strict=True))


def scores(line):
    output = line["outputs"]["scores"]
    return np.reshape(output["values"], output["shape"])


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind in PLACES for place in PLACES[kind]]
)
@pytest.mark.parametrize("name", HARD)
def test_a_hard_text_is_answered(hard_lines, kind, place, name):
    line = hard_lines(kind)[place, name]
    assert line["status"] == "OK", line["message"]
    for output in line["outputs"].values():
        assert output["shape"][0] == len(HARD[name])
        if output["dtype"] == "float":
            assert np.all(np.isfinite(output["values"]))


def check_refused(line, words):
    assert line["status"] == "INVALID_ARGUMENT"
    assert words in line["message"]
    assert "outputs" not in line


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_clear_error(lines, name):
    check_refused(lines[name], WRONG[name][1])


@pytest.mark.parametrize("kind", PLACES)
def test_every_kind_refuses_what_is_wrong(kind, exported, tmp_path):
    served, folder = exported(kind)
    faults = faults_of(served)
    if kind in UNEQUAL:
        signature, name = UNEQUAL[kind]
        inputs, _ = served.asked[signature]
        unequal = request_of({**inputs, name: inputs[name][:1]}, signature)
        faults["unequal"] = unequal, "must be equally many"
    requests = [request for request, _ in faults.values()]
    lines = replay(folder, tmp_path / "requests", requests)
    for line, (_, words) in zip(lines, faults.values(), strict=True):
        check_refused(line, words)


def test_after_all_of_them_the_host_answers_as_before(lines):
    assert lines["last"]["status"] == "OK"
    np.testing.assert_allclose(scores(lines["last"]), scores(lines["first"]), atol=1e-6)


# Without the host's check of dtypes and shapes, which TF Serving has none of, the graph
# refuses all but texts of another rank.
ANSWERED_UNCHECKED = {"scalar", "rank"}


def test_the_graph_alone_refuses_or_answers_each(folder, requests, tmp_path):
    found = replay(folder, tmp_path / "requests", requests.values(), "--unchecked")
    found = dict(zip(requests, found, strict=True))
    refused = WRONG.keys() - ANSWERED_UNCHECKED
    assert {name: line["status"] for name, line in found.items()} == {
        name: "INVALID_ARGUMENT" if name in refused else "OK" for name in requests
    }
    assert "string but int32 is provided" in found["dtype"]["message"]
    np.testing.assert_allclose(scores(found["last"]), scores(found["first"]), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_nothing_is_answered_with_nothing(kind, exported, tmp_path):
    served, folder = exported(kind)
    inputs, _ = served.asked["serving_default"]
    nothing = {name: tf.constant(rows)[:0] for name, rows in inputs.items()}
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
