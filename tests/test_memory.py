"""Converting the 1.5B model of the paper stays within 2.2 times its size in memory."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from deberta_tf.checkpoints import folders

GEOMETRY = "deberta_v2_xxlarge"
PARAMETERS = 1_564_549_632  # SPEC 7
FLOAT32_BYTES = 4 * PARAMETERS

MAKE = """
import sys
import deberta_tf
backbone = deberta_tf.DebertaBackbone.from_preset(
    sys.argv[1], load_weights=False, dtype="float16"
)
assert backbone.count_params() == int(sys.argv[2])
backbone.save_to_huggingface(sys.argv[3])
"""
CONVERT = """
import json, resource, sys
from tools import convert_checkpoint
convert_checkpoint.main(sys.argv[1:])
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_bytes": peak}))
"""


def run(code, *arguments):
    """Runs it in a process of its own; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=os.path.dirname(os.path.dirname(__file__)),
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


def convert(source, to, output, *more):
    *words, last = run(
        CONVERT, "--input", source, "--to", to, "--output", output, *more
    )
    print(*words, sep="\n")
    peak = json.loads(last)["peak_bytes"] / FLOAT32_BYTES
    print(f"peak of {to}: {peak:.2f} times the float32 model")
    return peak


@pytest.mark.slow
def test_the_largest_model_converts_within_2_2_times_its_size(tmp_path):
    try:
        run(MAKE, GEOMETRY, PARAMETERS, tmp_path / "float16")
        assert convert(tmp_path / "float16", "preset", tmp_path / "preset") < 2.2
        more = ("--dtype", "float16")
        peak = convert(tmp_path / "preset", "huggingface", tmp_path / "back", *more)
        assert peak < 2.2
        before, after = (
            folders.open_checkpoint(str(tmp_path / name)).tensors
            for name in ("float16", "back")
        )
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            np.testing.assert_array_equal(after[name].read(), tensor.read())
    finally:
        # pytest keeps the folders of three runs: 40 GB.
        shutil.rmtree(tmp_path)
