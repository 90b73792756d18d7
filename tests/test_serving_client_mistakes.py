"""Wrong flags and lines that are no JSON: told before any server is asked."""

import pytest

from deberta_tf.files import UsageError
from tools import serving_client


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}\n{", "line 2, is not JSON: .* Found: b'{'"),
        (b'"a"\n\xff\n', "line 2, is not JSON: 'utf-8' codec"),
    ],
)
def test_lines_are_read_before_the_server_is_asked(tmp_path, text, message):
    (tmp_path / "in.jsonl").write_bytes(text)
    command = ["--address", "localhost:1", "--model", "deberta", "--input"]
    command += [str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=f"in.jsonl, {message}"):
        serving_client.main(command)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--address http://localhost:1", "--address must be HOST:PORT, .*: 'http"),
        ("--address h:0", "of a port from 1 to 65535. Found: 'h:0'"),
        ("--address h:65536", "of a port from 1 to 65535. Found: 'h:65536'"),
        ("--address h:\u0661", "of a port from 1 to 65535. Found: 'h:"),
        ("--model_version -1", "--model_version must be at least 0. Found: -1"),
        ("--batch_size 0", "--batch_size must be at least 1. Found: 0"),
        ("--retries -1", "--retries must be at least 0. Found: -1"),
        ("--timeout_s 0", "--timeout_s must be above 0. Found: 0.0"),
        ("--output nowhere/out", "--output must be a file in a folder that exists"),
        ("--protocol http", "argument --protocol: invalid choice: 'http'"),
    ],
)
def test_a_wrong_flag_is_named(flags, message):
    command = "--address h:1 --model m --input nothing --output out " + flags
    with pytest.raises(UsageError, match=message):
        serving_client.main(command.split())


def test_an_address_of_ipv6_is_in_brackets():
    command = "--address [::1]:8500 --model m --input in --output out".split()
    assert serving_client.parse(command).address == "[::1]:8500"
