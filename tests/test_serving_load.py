"""The report of the host's load test, and what it is given."""

import os
import stat

import pytest

from deberta_tf import files
from tools import serving_load
from tools.serving_requests import WARM_UP_PATH, read_requests

# Stands in for the host: a line for each number of threads, as `load.cc` prints them.
FAKE_HOST = """#!/usr/bin/env python3
import json, sys
seconds, counts = (sys.argv[sys.argv.index(name) + 1] for name in FLAGS)
for count in counts.split(","):
    print(json.dumps({
        "concurrency": int(count), "seconds": float(seconds), "requests": 30,
        "requests_per_second": 12.34, "examples_per_second": 24.68, "p50_ms": 5.04,
        "p99_ms": 9.96, "errors": 0, "resident_mib": [400.2, 410.4, 410.6],
    }))
""".replace("FLAGS", '("--seconds", "--concurrency")')


def write_program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def flags(tmp_path):
    """Those of a load test with a folder and a host that are only as good as needed."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "texts").write_text("a grey cat\n\nthat song\nthe jury\n")
    host = write_program(tmp_path / "host", FAKE_HOST)
    model, texts = str(tmp_path / "1"), str(tmp_path / "texts")
    return ["--model", model, "--texts", texts, "--host", host]


def test_every_run_is_a_line_and_the_long_one_tells_its_memory(flags, tmp_path, capsys):
    document = tmp_path / "results.md"
    document.write_text("<!-- serving_load -->\n<!-- end of serving_load -->\n")
    serving_load.main(
        [*flags, "--concurrency", "1,64", "--minutes", "5", "--document", str(document)]
    )
    printed = capsys.readouterr().out
    assert "| 64 | 10 | 12.3 | 24.7 | 5.0 | 10.0 | 0 | 400 | 411 |" in printed
    assert "| 8 | 300 | 12.3 |" in printed
    assert "over the 300 s from 8 threads, in MiB each ten seconds: 400, 41" in printed
    assert printed in document.read_text()


def test_texts_are_sent_in_batches(flags, tmp_path):
    arguments = serving_load.parse([*flags, "--batch_size", "2"])
    path = serving_load.request_file(arguments, str(tmp_path / "requests"))
    sent = [request.inputs["text"].string_val for request in read_requests(path)]
    assert [list(texts) for texts in sent] == [
        [b"a grey cat", b"that song"],
        [b"the jury"],
    ]


def test_without_texts_the_warm_up_records_are_sent(flags, tmp_path):
    arguments = serving_load.parse(flags)
    arguments.texts = None
    with pytest.raises(
        files.UsageError, match="tf_serving_warmup_requests is not there"
    ):
        serving_load.request_file(arguments, None)
    path = os.path.join(arguments.model, WARM_UP_PATH)
    os.makedirs(os.path.dirname(path))
    open(path, "wb").close()
    assert serving_load.request_file(arguments, None) == path


def test_a_host_that_was_not_built_is_told(flags):
    with pytest.raises(files.UsageError, match="make serving-host"):
        serving_load.main([*flags, "--host", "nowhere"])


def test_a_folder_that_is_no_version_is_told(flags, tmp_path):
    with pytest.raises(files.UsageError, match="such as served/1"):
        serving_load.main([*flags, "--model", str(tmp_path)])


def test_what_the_host_refuses_is_told(flags, tmp_path):
    script = "#!/bin/sh\necho 'error: NOT_FOUND: no such op' >&2\nexit 1\n"
    host = write_program(tmp_path / "host", script)
    with pytest.raises(
        files.UsageError, match=f"^{host} failed: NOT_FOUND: no such op$"
    ):
        serving_load.main(flags)


@pytest.mark.parametrize("value", ["0", "1,,2", "many"])
def test_numbers_of_threads_are_positive(flags, value):
    with pytest.raises(files.UsageError, match="--concurrency"):
        serving_load.parse([*flags, "--concurrency", value])


def test_errors_are_told_with_their_words():
    run = {
        **{"concurrency": 1, "seconds": 1.0, "requests": 0, "errors": 3},
        **{"requests_per_second": 0.0, "examples_per_second": 0.0},
        **{"p50_ms": 1.0, "p99_ms": 1.0, "resident_mib": [1.0, 1.0]},
        "first_error": "no\n memory",
    }
    assert "An error: no memory" in serving_load.report([run])
