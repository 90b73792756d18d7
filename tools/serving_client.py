"""Asks TF Serving about the examples of a file, by gRPC or REST.

    python -m tools.serving_client --address localhost:8500 --protocol grpc \
        --model NAME --input examples.jsonl --output answers.jsonl

A line of the input is a JSON object of the signature's inputs for one example, as
{"text": "It rains."}, {"question": ..., "context": ...} or {"words": ["It", "rains"]};
an `id` is passed on. A signature of one input also takes its bare value. Lines of the
output hold the named outputs, in the same order. All of the input is checked before a
prediction is asked for, and the output is written whole or not at all.
"""

import argparse
import contextlib
import json
import os
import re
import sys

import tqdm

from deberta_tf import files
from tools import serving_examples
from tools.serving_transports import GrpcServer, RestServer, Target

PROTOCOLS = {"grpc": GrpcServer, "rest": RestServer}


def main(argv=None):
    arguments = parse(argv)
    values = serving_examples.read_lines(arguments.input)
    target = Target(
        arguments.address,
        arguments.model,
        arguments.model_version,
        arguments.timeout_s,
        arguments.retries,
    )
    with contextlib.closing(PROTOCOLS[arguments.protocol](target)) as server:
        signature = serving_examples.find_signature(
            server.signature_defs(), arguments.signature
        )
        examples = serving_examples.to_examples(arguments.input, values, signature)
        requests = [
            request
            for batch in serving_examples.batches(examples, arguments.batch_size)
            for request in fitting_requests(server, batch, signature, arguments)
        ]
        lines = ask(server, requests, signature, arguments.input)
    write(arguments.output, lines)


def fitting_requests(server, batch, signature, arguments):
    """(request, batch) of a batch, or of parts of it, none above the size allowed.

    Raises:
        UsageError: if one example alone is above it; it names its line and its size.
    """
    request, num_bytes = server.request(serving_examples.stack(batch), signature)
    if num_bytes <= arguments.max_request_bytes:
        return [(request, batch)]
    if len(batch) == 1:
        place = serving_examples.place(arguments.input, batch[0].line)
        raise files.UsageError(
            f"{place}: a request of {num_bytes} bytes, above --max_request_bytes "
            f"{arguments.max_request_bytes}"
        )
    middle = len(batch) // 2
    return [
        request
        for part in (batch[:middle], batch[middle:])
        for request in fitting_requests(server, part, signature, arguments)
    ]


def ask(server, requests, signature, path):
    """The answers to requests, a dict for each example.

    Args:
        server: `GrpcServer` or `RestServer`.
        requests: list of (request, list of `Example`).
        signature: `Signature`.
        path: str. The examples' file, for errors.

    Raises:
        UsageError: if one is not answered; it names the lines.
    """
    total = sum(len(batch) for _, batch in requests)
    lines = []
    # disable=None: none where stderr is no terminal.
    with tqdm.tqdm(total=total, unit="example", disable=None) as progress:
        for request, batch in requests:
            try:
                outputs = server.predict(request, signature)
                lines += serving_examples.answers(batch, outputs, signature)
            except ValueError as error:
                place = serving_examples.place(path, batch[0].line, batch[-1].line)
                raise files.UsageError(f"{place}: {error}") from None
            progress.update(len(batch))
    return lines


def write(path, lines):
    """Writes dicts as JSON lines; "-" is standard output."""
    if path != "-":
        files.write_json_lines(path, lines)
        return
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--address",
        required=True,
        help="HOST:PORT; TF Serving's ports are 8500 for gRPC and 8501 for REST",
    )
    add("--protocol", choices=PROTOCOLS, default="grpc", help="(%(default)s)")
    add("--model", required=True, help="name that the model is served by")
    add("--model_version", type=int, help="default: the latest")
    add("--signature", default="serving_default", help="(%(default)s)")
    add("--input", required=True, help="file of JSON lines, or - for standard input")
    add("--output", required=True, help="file to write, or - for standard output")
    add("--batch_size", type=int, default=32, help="examples a request (%(default)s)")
    add("--timeout_s", type=float, default=10.0, help="of a try (%(default)s)")
    add(
        "--retries",
        type=int,
        default=5,
        help="tries after the first, if the server is unavailable (%(default)s)",
    )
    add(
        "--max_request_bytes",
        type=int,
        default=4 * 1024**2,
        help="batches above it are halved (%(default)s: gRPC servers' own limit unless "
        "raised; TF Serving raises it to 2 GiB, what stands before it may not)",
    )
    arguments = parser.parse_args(argv)
    check(arguments)
    return arguments


def check(arguments):
    """Raises a `UsageError` for a flag that can't be right."""
    found = re.fullmatch(r"(?:\[[^]/]+\]|[^]\[/:\s]+):([0-9]{1,5})", arguments.address)
    if not found or not 1 <= int(found[1]) <= 65535:
        raise files.UsageError(
            "--address must be HOST:PORT, of a port from 1 to 65535. Found: "
            f"{arguments.address!r}"
        )
    numbers = {"batch_size": 1, "retries": 0, "max_request_bytes": 1}
    for name, least in {**numbers, "model_version": 0}.items():
        number = getattr(arguments, name)
        if number is not None and number < least:
            raise files.UsageError(
                f"--{name} must be at least {least}. Found: {number}"
            )
    if not arguments.timeout_s > 0:
        raise files.UsageError(
            f"--timeout_s must be above 0. Found: {arguments.timeout_s}"
        )
    folder = os.path.dirname(arguments.output) or "."
    if not os.path.isdir(folder) or os.path.isdir(arguments.output):
        raise files.UsageError(
            f"--output must be a file in a folder that exists. Found: "
            f"{arguments.output!r}"
        )


if __name__ == "__main__":
    files.run_command(main)
