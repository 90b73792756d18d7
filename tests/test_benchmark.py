import argparse
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from deberta_tf.files import UsageError
from deberta_tf.tasks import DebertaTextClassifier
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import make_backbone, randomize
from tools import (
    benchmark,
    benchmark_check,
    benchmark_predict,
    benchmark_serving,
    benchmark_sift,
    encoders,
    timing,
)


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
    assert timing.peak_memory() > 50 * 2**20
    assert benchmark_sift.peak_of("SiFT", arguments) >= 0


@pytest.fixture
def tiny_serving(monkeypatch):
    """Arguments of a run with a tiny geometry."""

    def make_task(size):
        task = DebertaTextClassifier(make_backbone(num_layers=1), num_classes=2)
        randomize(task)
        return task

    monkeypatch.setattr(benchmark_serving, "make_task", make_task)
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    small = ["--sizes=deberta_v3_small", "--rounds=1", "--batch_size=2"]
    return ["serving", *small, "--lengths", "4", "9"]


def rows_of(table):
    """Cells of the rows of a table, its head and the line below left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.slow
def test_what_is_served_is_timed_alone_where_onnxruntime_is_not_installed(
    tiny_serving, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark_serving, "NEEDED", ("no_such_package",))
    benchmark.main([*tiny_serving, "--weights", "int8", "float32"])
    printed = capsys.readouterr().out
    assert "not installed: no_such_package" in printed
    rows = rows_of(printed)
    assert [row[:2] for row in rows] == [
        [length, f"deberta_tf, {weights}"]
        for length in ("4", "9")
        for weights in ("int8", "float32")
    ]
    assert [row[3] for row in rows if "float32" in row[1]] == ["1.00", "1.00"]
    assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in rows)


@pytest.mark.reference
def test_what_is_served_is_timed_beside_onnxruntime(tiny_serving, capsys):
    pytest.importorskip("onnxruntime")
    benchmark.main([*tiny_serving, "--weights", "float32"])
    rows = rows_of(capsys.readouterr().out)
    names = ["deberta_tf, float32", benchmark_serving.FOREIGN]
    assert [row[1] for row in rows] == 2 * names
    assert [row[5] for row in rows if row[1] == names[1]] == ["1.00", "1.00"]
    assert all(float(row[6]) <= 1e-5 for row in rows)


def test_logits_that_differ_are_not_timed():
    contenders = {
        "deberta_tf, float32": lambda ids: lambda: np.zeros((2, 2)),
        benchmark_serving.FOREIGN: lambda ids: lambda: np.full((2, 2), np.nan),
    }
    with pytest.raises(RuntimeError, match="logits differ by nan at 9 tokens"):
        benchmark_serving.differences(contenders, np.zeros((2, 9), int))


@pytest.fixture
def tiny_predict(monkeypatch, sentences, sentencepiece_proto):
    """Arguments of a run with a tiny geometry and other texts."""

    def make_task(size, tokenizer):
        task = benchmark_predict.classifier(make_backbone(), tokenizer, 24)
        randomize(task)
        return task

    replaced = {
        "make_task": make_task,
        "read_texts": lambda count: [text * 2 for text in sentences[:count]],
        "read_vocabulary": lambda: sentencepiece_proto,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(benchmark_predict, name, value)
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    small = ["--sizes=deberta_v3_small", "--rounds=1", "--batch_size=2"]
    return ["predict", *small, "--num_texts=5"]


def test_texts_are_told_apart_before_they_are_timed(sentences, sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    task = benchmark_predict.classifier(make_backbone(), tokenizer, 24)
    benchmark_predict.tell_apart(task, sentences[:8])
    logits = task.predict(sentences[:8], verbose=0)
    # Fresh weights of a small model: its logits differed by 1e-3 or so.
    np.testing.assert_allclose(logits.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(logits.std(axis=0), 1, atol=0.05)


@pytest.mark.slow
def test_predictions_are_timed_alone_where_transformers_is_not_installed(
    tiny_predict, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark_predict, "transformers", None)
    benchmark.main(tiny_predict)
    printed = capsys.readouterr().out
    assert "not installed: torch and transformers" in printed
    (row,) = rows_of(printed)
    assert row[:2] == ["deberta_v3_small", benchmark_predict.OURS]
    assert float(row[2]) > 0
    assert row[3:] == ["1.00", "0e+00"]


@pytest.mark.reference
def test_predictions_are_timed_beside_the_pipeline(tiny_predict, tmp_path):
    pytest.importorskip("transformers")
    document = tmp_path / "document.md"
    document.write_text("<!-- predict -->\n<!-- end of predict -->\n")
    benchmark.main([*tiny_predict, f"--document={document}"])
    text = document.read_text()
    assert text.startswith("<!-- predict -->\n2 threads, 1 rounds: 5 texts of ")
    rows = rows_of(text)
    assert [row[1] for row in rows] == [
        benchmark_predict.OURS,
        benchmark_predict.FOREIGN,
    ]
    assert rows[1][3] == "1.00"
    # Probabilities in float32, of weights that all matter, and rows that are cut.
    assert 0 < float(rows[0][4]) <= 1e-5
    assert all(float(row[2]) > 0 for row in rows)


def test_the_texts_to_predict_are_the_same_in_every_run(monkeypatch):
    rows = [(f"text {i}", "positive") for i in range(9)] + [("a \x96 dash", "negative")]
    found = {"train": rows}
    monkeypatch.setattr(
        benchmark_predict.evaluation_data, "read_sentiment", lambda: found
    )
    texts = benchmark_predict.read_texts(9)
    assert sorted(texts) == [text for text, _ in rows[:9]]
    assert benchmark_predict.read_texts(9) == texts
    with pytest.raises(UsageError, match="at most 9. Received: 10"):
        benchmark_predict.read_texts(10)


@pytest.mark.parametrize("wrong", [0.51, np.nan])
def test_probabilities_that_differ_are_not_timed(wrong):
    contenders = {
        benchmark_predict.OURS: lambda: np.full((2, 2), wrong),
        benchmark_predict.FOREIGN: lambda: np.full((2, 2), 0.5),
    }
    with pytest.raises(RuntimeError, match="what is timed is not the same"):
        benchmark_predict.differences(contenders)


def test_a_ratio_is_the_median_of_rounds():
    seconds = {"one": [1.0, 9.0, 4.0], "two": [2.0, 3.0, 2.0]}
    assert timing.ratio(seconds, "one", "two") == 2.0
    assert timing.ratio(seconds, "two", "one") == 0.5


def test_contenders_run_in_turn_and_the_first_round_warms_up():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.in_turns(calls, 2, seconds_a_turn=0)
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}
    assert order == [*"aabb"] * 3


@pytest.mark.slow
def test_the_encoder_is_timed_beside_others(monkeypatch, capsys, tmp_path):
    geometry = {"HEADS": 2, "WIDTH": 16, "INTERMEDIATE": 32, "VOCABULARY": 50}
    for name, value in geometry.items():
        monkeypatch.setattr(encoders, name, value)
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    document = tmp_path / "document.md"
    document.write_text("<!-- encoder -->\n<!-- end of encoder -->\n")
    small = ["--lengths", "9", "--num_layers=1", "--rounds=1"]
    benchmark.main(["encoder", *small, f"--document={document}"])
    rows = rows_of(document.read_text())
    names = [row[4] for row in rows if row[2:4] == ["graph", "train"]]
    assert names == list(encoders.TENSORFLOW_NAMES)
    assert {row[3] for row in rows} == {"forward", "train"}
    assert all(float(row[6]) > 0 for row in rows if row[4] != encoders.OURS)


@pytest.mark.slow
def test_the_memory_of_a_forward_pass_is_drawn(tmp_path, capsys):
    plot = tmp_path / "memory.png"
    small = ["--lengths", "64", "128", "--num_layers=1", f"--plot={plot}"]
    benchmark.main(["encoder", "--memory", *small])
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == [
        encoders.OURS,
        encoders.GATHER,
        encoders.KERAS_HUB,
        encoders.BERT,
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_a_program_takes_to_begin_is_told(capsys):
    benchmark.main(["startup", "--layers", "1", "--rounds=1"])
    told = capsys.readouterr().out
    assert re.search(r"import deberta_tf [\d.]+ s, keras_hub alone [\d.]+ s", told)
    (row,) = rows_of(told)
    assert row[0] == "1"
    assert float(row[1]) > float(row[2]) > 0


@pytest.fixture
def ratios(monkeypatch):
    """What the guard measures, as a dict to be changed."""
    found = {"import": 1.1, "step": 0.6}
    monkeypatch.setattr(benchmark_check, "measure", lambda rounds: found)
    return found


@pytest.mark.parametrize(
    ("step", "code", "verdict"),
    [
        (0.6, 0, "as recorded"),
        (0.68, 0, "as recorded"),
        (0.70, 1, "SLOWER"),
        (0.50, 0, "faster: record it"),
    ],
)
def test_the_guard_compares_with_what_is_recorded(
    ratios, step, code, verdict, tmp_path, capsys
):
    path = tmp_path / "benchmarks.json"
    benchmark_check.record(path)
    ratios["step"] = step
    capsys.readouterr()
    assert benchmark_check.check(path) == code
    import_line, step_line = capsys.readouterr().out.splitlines()
    assert import_line == "import: 1.10, recorded 1.10 (+0%): as recorded"
    assert step_line.endswith(f": {verdict}")


def test_other_versions_and_measurements_are_told(ratios, tmp_path, capsys):
    path = tmp_path / "benchmarks.json"
    benchmark_check.record(path)
    recorded = json.loads(path.read_text())
    recorded["versions"]["numpy"] = "0.1"
    path.write_text(json.dumps(recorded))
    benchmark_check.check(path)
    assert f"numpy is {np.__version__}, was 0.1" in capsys.readouterr().out
    ratios["another"] = 1.0
    with pytest.raises(UsageError, match=r"other measurements .*\['another'\]"):
        benchmark_check.check(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="lacks .*'band'"):
        benchmark_check.check(path)
    with pytest.raises(UsageError, match="can't be read"):
        benchmark_check.check(tmp_path / "nothing.json")


def test_what_is_committed_is_of_the_measurements_that_are_made():
    recorded = benchmark_check.read(benchmark_check.RECORDS)
    assert set(recorded["ratios"]) == benchmark_check.measurements()[1]
    assert 0 < recorded["band"] <= 0.2
    assert all(ratio > 0 for ratio in recorded["ratios"].values())


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="at least 1"):
        benchmark.main(["masking", "--rounds=0"])
    with pytest.raises(UsageError, match="lengths must be more than 5"):
        benchmark.main(["encoder", "--lengths", "5"])
    with pytest.raises(UsageError, match="lengths must be at least 2"):
        benchmark.main(["serving", "--lengths", "1"])
    with pytest.raises(UsageError, match="num_texts must be at least 2"):
        benchmark.main(["predict", "--num_texts=1"])
    with pytest.raises(UsageError, match="a command is wanted"):
        benchmark.main([])
