import re
import subprocess
import sys

import pytest

from deberta_tf.files import UsageError
from tools import benchmark


def test_the_masking_benchmark_measures_each_library():
    # In a process of its own: it keeps to one core.
    command = [sys.executable, "-m", "tools.benchmark", "masking"]
    small = ["--sequence_length=32", "--batch_size=4", "--num_batches=2", "--rounds=1"]
    done = subprocess.run([*command, *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^(.+?) +([\d.]+) M tokens/s +([\d.]+)$", done.stdout, re.M)
    names = [name for name, _, _ in found]
    assert names[0].startswith("deberta_tf")
    assert "KerasHub MaskedLMMaskGenerator" in names
    assert float(found[0][2]) == 1.0
    left_out = "transformers is not installed" in done.stdout
    assert left_out != any(name.startswith("Hugging Face") for name in names)


def test_a_contender_that_skips_work_is_noticed(capsys):
    parsed = {"batch_size": 2, "num_batches": 3, "sequence_length": 8, "rounds": 1}
    arguments = type("Arguments", (), parsed)
    benchmark.report({"all": lambda: 3}, arguments)
    assert "all" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="some gave 2 batches"):
        benchmark.report({"some": lambda: 2}, arguments)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="at least 1"):
        benchmark.main(["masking", "--rounds=0"])
    with pytest.raises(UsageError, match="command"):
        benchmark.main([])
