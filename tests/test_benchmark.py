import argparse
import re
import subprocess
import sys

import pytest

from deberta_tf.files import UsageError
from tools import benchmark, benchmark_sift


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


def test_a_contender_that_skips_work_is_noticed():
    assert benchmark.counter([1, 2, 3], 3)() is None
    with pytest.raises(RuntimeError, match="2 batches of 3"):
        benchmark.counter([1, 2], 3)()


@pytest.mark.slow
def test_the_step_of_sift_is_measured_beside_a_plain_one(monkeypatch, capsys):
    geometry = {"LAYERS": 1, "HEADS": 2, "WIDTH": 16, "VOCABULARY": 50}
    for name, value in geometry.items():
        monkeypatch.setattr(benchmark_sift, name, value)
    # Memory of processes of their own, which know nothing of that geometry.
    peaks = dict.fromkeys(benchmark_sift.CONTENDERS, 3 * 2**20)
    monkeypatch.setattr(benchmark_sift, "memory", lambda arguments: peaks)
    small = ["--sequence_length=8", "--batch_size=2", "--rounds=1"]
    benchmark.main(["sift", *small])
    lines = capsys.readouterr().out.splitlines()
    pattern = r"(.+?) +[\d.]+ s a step, ([\d.]+) times; 3 MiB, 1.00 times"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [one[1] for one in found] == list(benchmark_sift.CONTENDERS)
    assert float(found[0][2]) == 1.0
    arguments = argparse.Namespace(
        precision="float32", batch_size=2, sequence_length=8, jit_compile=False
    )
    assert benchmark_sift.peak() > 50 * 2**20
    assert benchmark_sift.peak_of("SiFT", arguments) >= 0


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="at least 1"):
        benchmark.main(["masking", "--rounds=0"])
    with pytest.raises(UsageError, match="command"):
        benchmark.main([])
