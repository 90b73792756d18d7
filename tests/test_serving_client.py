"""The client of TF Serving, over real sockets; `stand_in_server` says what answers."""

import contextlib
import functools
import http.server
import io
import json
import socket
import sys
import threading
import time

import pytest

import deberta_tf
from deberta_tf.files import UsageError, run_command
from tests import client_checks
from tests.client_checks import check_same, own_answers, serve
from tests.late_port import LatePort
from tests.stand_in_json import Refused
from tools import serving_client, serving_transports

TEXTS = ["the old captain sold the harbour.", "", "naïve « peas » 🚲", "song " * 40]
PAIRS = [{"text": text, "text_pair": text[:9]} for text in TEXTS]
BOTH = pytest.mark.parametrize("protocol", ["grpc", "rest"])


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(serving_transports, "BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def serving(sentencepiece_proto, tmp_path_factory):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    task_class = deberta_tf.DebertaTextClassifier
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    folder = tmp_path_factory.mktemp("served")
    with serve(task_class, preprocessor, folder, labels=["calm", "naïve"]) as server:
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
    """Asks a server about values, with flags, by files in `tmp_path`."""
    return functools.partial(client_checks.ask, tmp_path)


def fails_after(server, count):
    predict = server.predict

    def fail(*arguments):
        if len(server.requests) == count:
            raise Refused("INTERNAL", "out of luck")
        return predict(*arguments)

    return fail


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


def ids_of(server):
    """Names of the inputs of `token_ids`."""
    return [*server.versions[1].signature_defs["token_ids"].inputs]


def test_ids_of_one_length_share_a_batch(classifier, ask):
    values = [
        {name: [1] * length for name in ids_of(classifier)} for length in (3, 3, 4, 3)
    ]
    answers = ask(classifier, "rest", values, "--signature", "token_ids")
    assert classifier.requests == [("rest", 2), ("rest", 1), ("rest", 1)]
    for value, answer in zip(values, answers, strict=True):
        own = {name: [row] for name, row in value.items()}
        check_same([answer], own_answers(classifier, "token_ids", **own))


@BOTH
def test_order_and_ids_are_kept_over_batches(classifier, ask, protocol):
    values = [{"id": 7 - row, "text": TEXTS[row % 4]} for row in range(7)]
    answers = ask(classifier, protocol, values, "--batch_size", "3")
    assert [rows for _, rows in classifier.requests] == [3, 3, 1]
    assert [answer.pop("id") for answer in answers] == [7, 6, 5, 4, 3, 2, 1]
    texts = [value["text"] for value in values]
    check_same(answers, own_answers(classifier, text=texts))


def test_one_input_is_also_taken_as_its_bare_value(classifier, ask):
    objects = [{"text": text} for text in TEXTS]
    assert ask(classifier, "grpc", TEXTS) == ask(classifier, "grpc", objects)


def test_a_file_without_lines_gives_a_file_without_lines(classifier, ask):
    assert ask(classifier, "rest", []) == []


@BOTH
def test_a_version_is_chosen_by_its_number(classifier, ask, protocol):
    values = [{"text": "nobody"}]
    chosen = ask(classifier, protocol, values, "--model_version", "1")
    assert chosen == ask(classifier, protocol, values)
    with pytest.raises(UsageError, match=r"'deberta' of version 2: .*Specific\(deb"):
        ask(classifier, protocol, values, "--model_version", "2")


@BOTH
def test_standard_streams_are_a_dash(classifier, protocol, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO('{"text": "naïve"}\n'.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    address = classifier.address(protocol)
    serving_client.main(
        f"--address {address} --protocol {protocol} --model deberta --input - "
        "--output -".split()
    )
    captured = capsys.readouterr()
    check_same([json.loads(captured.out)], own_answers(classifier, text=["naïve"]))
    # No progress bar where nobody looks.
    assert captured.err == ""


def test_a_terminal_is_shown_how_far_it_is(classifier, ask, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    ask(classifier, "grpc", TEXTS, "--batch_size", "1")
    assert "100%" in capsys.readouterr().err


@BOTH
@pytest.mark.parametrize("failure", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_busy_server_is_asked_again(classifier, ask, protocol, failure):
    classifier.failures, classifier.failure = 2, failure
    answers = ask(classifier, protocol, [{"text": "nobody"}], "--retries", "2")
    check_same(answers, own_answers(classifier, text=["nobody"]))
    assert classifier.failures == 0


@BOTH
def test_a_server_that_stays_busy_is_given_up(classifier, ask, protocol, tmp_path):
    classifier.failures, classifier.failure = 9, "UNAVAILABLE"
    message = "is unavailable by ...., tries: 3: The batch scheduling queue is full"
    with pytest.raises(UsageError, match=message):
        ask(classifier, protocol, [{"text": "nobody"}], "--retries", "2")
    assert classifier.failures == 6
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@BOTH
def test_a_server_that_hangs_is_not_asked_again(classifier, ask, protocol):
    classifier.is_free.clear()
    with pytest.raises(
        UsageError, match=r"in.jsonl, line 1: .* no answer within 1 s \(--timeout_s\)"
    ):
        ask(classifier, protocol, [{"text": "nobody"}], "--timeout_s", "1")
    classifier.is_free.set()


@BOTH
def test_a_server_whose_own_time_ran_out_is_not_asked_again(classifier, ask, protocol):
    classifier.failures, classifier.failure = 9, "DEADLINE_EXCEEDED"
    with pytest.raises(UsageError, match="gave no answer within "):
        ask(classifier, protocol, [{"text": "nobody"}])
    assert classifier.failures == 8


@BOTH
def test_a_server_that_is_not_there_is_one_line(ask, protocol, capsys):
    with socket.socket() as unused:
        # Bound, and nobody listens.
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SystemExit, match="2"):
            run_command(
                lambda _: ask(address, protocol, [{"text": "x"}], "--retries", "1")
            )
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address} is unavailable by ")
    assert ", tries: 2: " in error
    assert "refused" in error
    assert error.count("\n") == 1


@BOTH
def test_a_server_that_comes_late_is_found(classifier, ask, protocol, monkeypatch):
    """Its port opens when the client waits to try again."""
    listener = LatePort(classifier.address(protocol))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: (listener.open(), sleep(s)))
    with contextlib.closing(listener):
        answers = ask(
            listener.address, protocol, [{"text": "nobody"}], "--retries", "8"
        )
    check_same(answers, own_answers(classifier, text=["nobody"]))


@BOTH
def test_a_server_that_fails_midway_leaves_the_old_output(
    classifier, ask, protocol, tmp_path, monkeypatch
):
    (tmp_path / "out.jsonl").write_text("old")
    monkeypatch.setattr(classifier, "predict", fails_after(classifier, 2))
    with pytest.raises(UsageError, match="lines 5-6: .* (INTERNAL|500): out of luck"):
        ask(classifier, protocol, [{"text": "x"}] * 9, "--batch_size", "2")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


@BOTH
def test_a_wrong_signature_is_told_those_there_are(classifier, ask, protocol):
    with pytest.raises(
        UsageError,
        match="no signature 'classify_all' .* 'serving_default', 'text_pairs', 'token_",
    ):
        ask(classifier, protocol, TEXTS, "--signature", "classify_all")


@BOTH
def test_a_wrong_model_is_named(classifier, ask, protocol):
    with pytest.raises(
        UsageError,
        match=r"serves no model 'bert': Servable not found for request: Latest\(bert\)",
    ):
        ask(classifier, protocol, TEXTS, "--model", "bert")


def test_what_is_no_tf_serving_is_told_as_it_answers(ask):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "no such page")

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(UsageError, match="answered 404: .*no such page"):
            ask(f"127.0.0.1:{server.server_port}", "rest", TEXTS)
        thread.join()


@pytest.mark.parametrize(("protocol", "other"), [("grpc", "rest"), ("rest", "grpc")])
def test_the_port_of_the_other_protocol_is_one_error(classifier, ask, protocol, other):
    with pytest.raises(UsageError, match=f"{classifier.address(other)} "):
        ask(classifier.address(other), protocol, TEXTS, "--retries", "0")


@BOTH
def test_batches_above_the_limit_are_halved(classifier, ask, protocol):
    values = [{"text": "a" * 300}] * 2 + [{"text": "b"}] * 3
    answers = ask(classifier, protocol, values, "--max_request_bytes", "450")
    assert [rows for _, rows in classifier.requests] == [1, 1, 3]
    check_same(answers, own_answers(classifier, text=[one["text"] for one in values]))


@BOTH
def test_an_example_above_the_limit_is_named_before_any_is_sent(
    classifier, ask, protocol
):
    values = [{"text": "b"}, {"text": "a" * 1000}, {"text": "b"}]
    with pytest.raises(
        UsageError,
        match="line 2: a request of 10.. bytes, above --max_request_bytes 450",
    ):
        ask(classifier, protocol, values, "--max_request_bytes", "450")
    assert classifier.requests == []


@BOTH
def test_a_limit_of_the_server_is_told_as_such(classifier, ask, protocol):
    values = [{"text": "a" * 5 * 1024**2}]
    with pytest.raises(
        UsageError,
        match=r"line 1: .* takes no request of this size \(see --max_request_bytes\): "
        "(SERVER: Received message larger than max|Request Entity Too Large)",
    ):
        ask(classifier, protocol, values, "--max_request_bytes", str(9 * 1024**2))


@BOTH
def test_a_refusal_has_the_servers_words_and_the_lines(classifier, ask, protocol):
    value = {name: [1, 104, 2] for name in ids_of(classifier)}
    with pytest.raises(
        UsageError, match=r"lines 1-2: .* (INVALID_ARGUMENT|400): .*104 is not in \[0,"
    ):
        ask(classifier, protocol, [value] * 2, "--signature", "token_ids")


@BOTH
def test_wrong_inputs_are_named_before_any_is_sent(classifier, ask, protocol):
    with pytest.raises(
        UsageError, match="in.jsonl, line 2: 'text' must be of type str"
    ):
        ask(classifier, protocol, [{"text": "a"}, {"text": 3}])
    assert classifier.requests == []
