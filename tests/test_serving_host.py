"""What the C++ host answers is what Python answers: of every task, without Python."""

import numpy as np
import pytest
import tensorflow as tf

from tests import native_host
from tests.native_host import lines_of, replay, run
from tests.served_tasks import KINDS, TEXTS
from tools import serving_load
from tools.serving_requests import predict_request, write_requests

pytestmark = pytest.mark.native
pytest_plugins = "tests.served_fixtures"


@pytest.fixture
def classifier(exported):
    return exported("text_classifier")[0].task


@pytest.fixture
def folder(exported):
    return exported("text_classifier")[1]


@pytest.fixture
def requests(classifier):
    """One to each signature of a classifier, as warm-up has them."""
    ids = {name: one.numpy() for name, one in classifier.preprocessor(TEXTS).items()}
    pairs = {"text": TEXTS, "text_pair": TEXTS[::-1]}
    return [
        predict_request("served", {"text": TEXTS}),
        predict_request("served", pairs, "text_pairs"),
        predict_request("served", ids, "token_ids"),
    ]


def values(line, name):
    output = line["outputs"][name]
    return np.reshape(output["values"], output["shape"])


def softmax(logits):
    return tf.nn.softmax(logits).numpy()


def test_warm_up_records_are_answered_as_by_predict(
    classifier, folder, requests, tmp_path
):
    one, pairs, ids = replay(folder, tmp_path / "requests", requests)
    assert {line["status"] for line in (one, pairs, ids)} == {"OK"}
    logits = classifier.predict(TEXTS, verbose=0)
    np.testing.assert_allclose(values(one, "scores"), softmax(logits), atol=1e-5)
    np.testing.assert_allclose(values(ids, "logits"), logits, atol=1e-5)
    labels = [classifier.labels[index] for index in logits.argmax(-1)]
    assert one["outputs"]["label"] == {
        "dtype": "string",
        "shape": [3],
        "values": labels,
    }
    logits = classifier.predict((TEXTS, TEXTS[::-1]), verbose=0)
    np.testing.assert_allclose(values(pairs, "scores"), softmax(logits), atol=1e-5)
    assert pairs["signature"] == "text_pairs"


def check_answers(line, expected):
    assert line["status"] == "OK", line["message"]
    assert set(line["outputs"]) == set(expected)
    for name, array in expected.items():
        assert line["outputs"][name]["shape"] == list(array.shape)
        if array.dtype.kind == "U":
            assert line["outputs"][name]["values"] == array.ravel().tolist()
        else:
            np.testing.assert_allclose(
                values(line, name), array, atol=1e-5, rtol=1e-5, err_msg=name
            )


@pytest.mark.parametrize("kind", KINDS)
def test_every_signature_is_answered_as_by_python(kind, exported, tmp_path):
    one, path = exported(kind)
    requests = [
        predict_request("served", inputs, signature)
        for signature, (inputs, _) in one.asked.items()
    ]
    # A model of byte pairs needs no library of ops.
    library = kind != "byte_pair_classifier"
    lines = replay(path, tmp_path / "requests", requests, library=library)
    for line, (_, expected) in zip(lines, one.asked.values(), strict=True):
        check_answers(line, expected)


def test_a_sentencepiece_model_asks_for_its_library(folder):
    done = run(folder, "answer", library=False)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert f"{folder} needs a library of ops that --ops must name" in last
    assert "SentencepieceOp" in last


def test_lines_are_answered_one_by_one_and_in_batches(classifier, folder):
    texts = ["the jury sold that song", "", "na\u00efve \U0001f600 peas", "nobody"]
    given = "\n".join(texts).encode()
    expected = softmax(classifier.predict(texts, verbose=0))
    for flags, batches in (([], 4), (["--batch", "3"], 2)):
        done = run(folder, "answer", *flags, given=given)
        lines = lines_of(done)
        scores = [line["scores"] for line in lines]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert [line["label"] for line in lines] == [
            classifier.labels[index] for index in expected.argmax(-1)
        ]
        told = done.stderr.decode().splitlines()[-1]
        assert told.startswith(f"4 texts in {batches} batches; first batch ")
        assert " ms, others p50 " in told
        assert " ms, p99 " in told


def test_lines_are_for_models_of_one_string(exported):
    done = run(exported("question_answering")[1], "answer", given=b"who?")
    assert done.returncode == 1
    assert b"takes more than one string: context, question" in done.stderr


def test_a_load_tells_speed_and_memory(folder, requests, tmp_path, capsys):
    path = str(tmp_path / "requests")
    write_requests(path, requests)
    flags = ["--seconds", "0.4", "--concurrency", "1,5"]
    lines = lines_of(run(folder, "load", *flags, path))
    assert [line["concurrency"] for line in lines] == [1, 5]
    for line in lines:
        assert line["errors"] == 0
        rates = line["requests_per_second"], line["examples_per_second"]
        # Each request has three examples.
        assert 0 < 2.9 * rates[0] < rates[1] < 3.1 * rates[0]
        assert 0 < line["p50_ms"] <= line["p99_ms"]
        assert len(line["resident_mib"]) == 2
        assert min(line["resident_mib"]) > 10
    assert serving_load.report(lines).count("\n| ") == 3


def test_the_load_test_runs_the_host(folder, tmp_path, capsys):
    (tmp_path / "texts").write_text("\n".join(text for text in TEXTS if text))
    serving_load.main(
        ["--model", folder, "--texts", str(tmp_path / "texts")]
        + ["--host", native_host.build(), "--concurrency", "2", "--seconds", "0.2"]
        + ["--minutes", "0.01", "--steady", "3"]
    )
    table = capsys.readouterr().out
    assert "\n| 2 | 0 | " in table
    assert "\n| 3 | 1 | " in table
    assert " s from 3 threads, in MiB each ten seconds: " in table


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], "COMMAND must be replay, answer or load. Found: ''", 2),
        (["serve"], "Found: 'serve'", 2),
        (["replay"], "replay needs a FILE", 2),
        (["answer", "file"], "answer takes no FILE", 2),
        (["answer", "--batch", "0"], "--batch must be a positive number", 2),
        (["answer", "--seconds", "3"], "unknown flag --seconds", 2),
        (["load", "x", "--concurrency", "1,x"], "numbers of threads from 1 to", 2),
        (["load", "x", "--seconds"], "--seconds needs a value", 2),
        (["replay", "nowhere"], "NOT_FOUND: nowhere", 1),
        (["--ops", "no.so", "answer"], "NOT_FOUND: no.so", 1),
    ],
)
def test_a_mistake_is_one_clear_line(folder, arguments, words, code):
    done = run(folder, *arguments)
    assert done.returncode == code
    errors = done.stderr.decode().split("error: ")
    assert len(errors) == 2
    assert words in errors[-1]


def test_a_folder_without_a_model_is_told(tmp_path):
    done = run(str(tmp_path), "answer")
    assert done.returncode == 1
    assert b"error: NOT_FOUND: Could not find SavedModel" in done.stderr


def test_a_file_that_is_cut_off_is_data_loss(folder, requests, tmp_path):
    path = tmp_path / "requests"
    write_requests(str(path), requests)
    path.write_bytes(path.read_bytes()[:-20])
    done = run(folder, "replay", str(path))
    assert done.returncode == 1
    assert b"error: DATA_LOSS: " in done.stderr
