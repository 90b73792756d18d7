"""Load test of an exported folder in the C++ host: throughput, latency, memory.

    make serving-host
    python -m tools.serving_load --model SERVED/1

Requests are those of the folder's warm-up records, or the lines of --texts. They are
sent from each number of threads, then for some minutes from one of them, over which
memory must stay what it is. The table goes to stdout, and between the marks of
`serving_load` in --document.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

from deberta_tf import files
from tools.documents import markdown_table, put_table
from tools.serving_requests import WARM_UP_PATH, predict_request, write_requests

HEAD = [
    "threads",
    "seconds",
    "requests/s",
    "examples/s",
    "p50, ms",
    "p99, ms",
    "errors",
    "memory at the beginning, MiB",
    "at the end",
]


def main(argv=None):
    arguments = parse(argv)
    if not os.path.isfile(os.path.join(arguments.model, "saved_model.pb")):
        raise files.UsageError(
            f"--model {arguments.model!r} has no saved_model.pb: name the folder of a "
            "version, such as served/1"
        )
    check_host(arguments.host)
    with tempfile.TemporaryDirectory() as folder:
        requests = request_file(arguments, os.path.join(folder, "requests"))
        runs = [
            *measure(arguments, requests, arguments.seconds, arguments.concurrency),
            *measure(arguments, requests, 60 * arguments.minutes, [arguments.steady]),
        ]
    found = report(runs)
    print(found)
    if arguments.document:
        put_table(arguments.document, "serving_load", found)


def check_host(path):
    if not os.access(path, os.X_OK):
        raise files.UsageError(f"--host {path!r} is not there: make serving-host")


def ops_library():
    """Path of the ops of a SentencePiece vocabulary, in the wheel of TF-Text."""
    # Found, not imported: that would load TensorFlow.
    (folder,) = importlib.util.find_spec("tensorflow_text").submodule_search_locations
    return os.path.join(folder, "python", "ops", "_sentencepiece_tokenizer.so")


def request_file(arguments, path):
    """The file of the requests to send: the folder's own, or `path`, of the texts."""
    if arguments.texts is None:
        path = os.path.join(arguments.model, WARM_UP_PATH)
        if not os.path.isfile(path):
            raise files.UsageError(f"{path} is not there: pass --texts")
        return path
    with open(arguments.texts, encoding="utf-8") as file:
        texts = [line for line in map(str.strip, file) if line]
    if not texts:
        raise files.UsageError(f"--texts {arguments.texts!r} holds no text")
    size = arguments.batch_size
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    write_requests(path, (predict_request("load", {"text": one}) for one in batches))
    return path


def measure(arguments, requests, seconds, concurrency):
    """What the host printed of each number of threads, list of dict; also to stderr."""
    command = [arguments.host, arguments.model, "--ops", ops_library(), "load"]
    command += ["--seconds", str(seconds)]
    command += ["--concurrency", ",".join(map(str, concurrency)), requests]
    # What TensorFlow tells of a machine without a GPU is no error.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    runs = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as host,
    ):
        for line in host.stdout:
            runs.append(json.loads(line))
            print(line.strip(), file=sys.stderr)
        if host.wait():
            errors.seek(0)
            *_, told = ["no word of it", *errors.read().splitlines()]
            told = told.removeprefix("error: ")
            raise files.UsageError(f"{arguments.host} failed: {told}")
    return runs


def report(runs):
    """Markdown: a line for each run, and the memory over the last."""
    lines = [HEAD]
    for run in runs:
        lines.append(
            [
                str(run["concurrency"]),
                f"{run['seconds']:.0f}",
                f"{run['requests_per_second']:.1f}",
                f"{run['examples_per_second']:.1f}",
                f"{run['p50_ms']:.1f}",
                f"{run['p99_ms']:.1f}",
                str(run["errors"]),
                f"{run['resident_mib'][0]:.0f}",
                f"{run['resident_mib'][-1]:.0f}",
            ]
        )
    last = runs[-1]
    samples = ", ".join(f"{one:.0f}" for one in last["resident_mib"])
    told = (
        f"{len(os.sched_getaffinity(0))} CPU cores. Memory over the "
        f"{last['seconds']:.0f} s from {last['concurrency']} threads, in MiB each ten "
        f"seconds: {samples}."
    )
    errors = {run["first_error"] for run in runs if run["errors"]}
    told += "".join(f" An error: {' '.join(error.split())}" for error in sorted(errors))
    return f"{markdown_table(lines)}\n\n{told}"


def numbers(text):
    """Numbers of threads, of a text such as "1,8"."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def positive(kind):
    """A parser of an argument that must be above 0."""

    def parse_positive(text):
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    parse_positive.__name__ = f"positive {kind.__name__}"
    return parse_positive


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a served version")
    parser.add_argument("--texts", help="file of texts, a line each, to send")
    parser.add_argument(
        "--batch_size", type=positive(int), default=1, help="texts of --texts a request"
    )
    parser.add_argument(
        "--seconds", type=positive(float), default=10.0, help="of each concurrency"
    )
    parser.add_argument(
        "--concurrency",
        type=numbers,
        default=[1, 2, 4, 8, 16, 32, 64],
        help="numbers of threads, with commas between",
    )
    parser.add_argument(
        "--minutes", type=positive(float), default=5.0, help="of the run at --steady"
    )
    parser.add_argument(
        "--steady", type=positive(int), default=8, help="threads of the long run"
    )
    parser.add_argument("--host", default="build/serving_host", help="the built host")
    parser.add_argument("--document", help="Markdown file that keeps the table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    files.run_command(main)
