"""Small tasks behind `StandInServer`, and questions to them by the serving client."""

import json

import numpy as np
import tensorflow as tf

from tests.small_models import make_backbone, randomize
from tests.stand_in_server import StandInServer
from tools import serving_client


def serve(task_class, preprocessor, folder, **arguments):
    """A server, to be entered, of a small task of a class, as "deberta"."""
    backbone = make_backbone(num_layers=1, max_sequence_length=64)
    task = task_class(backbone, preprocessor=preprocessor, **arguments)
    randomize(task)
    task.export_for_serving(str(folder))
    return StandInServer("deberta", str(folder))


def ask(folder, server, protocol, values, *flags):
    """Answers, list of dict, to values, each in a line of a file.

    Args:
        folder: path. Gets in.jsonl and out.jsonl.
        server: `StandInServer`, or str, an address.
        protocol: "grpc" or "rest".
        values: list, for JSON.
        flags: str, of the client.
    """
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(value) + "\n" for value in values))
    address = server if isinstance(server, str) else server.address(protocol)
    command = ["--address", address, "--protocol", protocol, "--model", "deberta"]
    command += ["--input", str(source), "--output", str(output), *flags]
    serving_client.main(command)
    return [json.loads(line) for line in output.read_text().splitlines()]


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
                texts = [text.decode() for text in np.ravel(row)]
                assert np.ravel(np.array(answer[name], object)).tolist() == texts
            else:
                # Decimals that read the same as float32: nothing is lost on the way.
                np.testing.assert_allclose(answer[name], row, rtol=1e-6, atol=1e-6)
