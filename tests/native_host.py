"""The C++ host, built once, and what it prints."""

import functools
import json
import os
import pathlib
import subprocess
import sys

from tools.serving_load import ops_library
from tools.serving_requests import write_requests

_ROOT = pathlib.Path(__file__).parents[1]


@functools.cache
def build():
    """Path of the host, as `make serving-host` builds it."""
    path = os.path.join("build", "serving_host")
    command = ["make", "--jobs=2", "-f", "tools/serving_host/Makefile"]
    command += [f"PYTHON={sys.executable}", f"OUTPUT={path}"]
    made = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return str(_ROOT / path)


def run(folder, *arguments, library=True, given=None):
    """What the host did: `subprocess.CompletedProcess`.

    Args:
        folder: str, of a served version.
        arguments: str, the command and what it takes.
        library: bool. Whether the ops of TF-Text are loaded.
        given: bytes, stdin.
    """
    ops = ["--ops", ops_library()] if library else []
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [build(), folder, *ops, *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=environment)


def lines_of(done):
    """The JSON lines that a run of the host printed."""
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def replay(folder, path, requests, *flags, library=True):
    """A line of the host for each `PredictRequest`, which are written to `path`."""
    write_requests(str(path), requests)
    return lines_of(run(folder, *flags, "replay", str(path), library=library))
