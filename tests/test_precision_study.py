"""tools/precision_study.py and precision_report.py: the runs, and what is told."""

import json
import os
import pathlib
import signal

import pytest

from deberta_tf.files import UsageError
from tests.fake_runs import make_run_chains
from tools import precision_report, precision_study, studies
from trainers import pretrain
from trainers.config import parse

ROOT = pathlib.Path(__file__).parents[1]
FACTS = {"train": {"rows": 3}}


@pytest.fixture(autouse=True)
def same_signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def make_record(model, seed, losses, held_out, skipped=0.0):
    return {
        "data": "reviews",
        "model": model,
        "seed": seed,
        "settings": {},
        "facts": FACTS,
        "commands": ["python -m trainers.pretrain"],
        "seconds": 60,
        "scores": {
            "step": [25, 50],
            "loss": losses,
            "skipped_updates": [skipped, 0.0],
            "held_out": held_out,
        },
    }


def records():
    return [
        make_record("float32", 1, [8.0, 7.0], 6.5),
        make_record("float32", 2, [8.1, 7.0], 6.75),
        make_record("mixed_float16", 2, [8.1, 7.02], 6.74, skipped=3.0),
        # No run of float32 to stand beside.
        make_record("mixed_float16", 3, [8.0, 7.0], 6.0),
    ]


def flags_of(folder):
    document = folder / "results.md"
    if not document.exists():
        document.write_text("<!-- precision -->\n<!-- end of precision -->\n")
    results = folder / "precision.jsonl"
    return [f"--results={results}", f"--document={document}", f"--dir={folder}"]


def test_runs_of_a_seed_differ_in_the_precision_alone(tmp_path):
    options = studies.parse(flags_of(tmp_path), "", "precision", "precision")
    runs = precision_study.make_runs(options)
    assert len({run.key for run in runs}) == len(runs) == 6
    for run in runs:
        arguments = list(run.stages[0].arguments)
        assert arguments[:2] == ["-m", "trainers.pretrain"]
        config = parse(pretrain.PretrainConfig, arguments[2:])
        assert (config.precision, config.seed) == (run.model, run.seed)
        assert config.total_steps == 500
        del run.settings["precision"]
        assert run.settings == runs[0].settings


def test_each_run_stands_beside_float32_of_its_seed():
    lines = precision_report.table(records()).splitlines()
    assert lines[2:4] == [
        "| float32, seed 2 | float32, seed 1 | 0.1000 | 0.0500 | 6.7500 | +0.2500 | 0 "
        "| 1:00 |",
        "| float16, seed 2 | float32, seed 2 | 0.0200 | 0.0100 | 6.7400 | -0.0100 | 3 "
        "| 1:00 |",
    ]
    assert lines[4] == ""
    assert "float32, seed 1 6.5000 (1:00)" in lines[5]


def test_a_run_that_is_through_becomes_a_line_and_is_not_run_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(precision_study, "prepare", lambda _: ({"reviews": FACTS}, "k"))
    begun = []

    def leave(chain):
        folder = pathlib.Path(chain[0].output)
        os.makedirs(folder)
        lines = [
            {"step": 25, "train/loss": 8.0, "train/skipped_updates": 2.0},
            {"step": 500, "train/loss": 7.0, "train/skipped_updates": 0.0},
            {"step": 500, "held_out/loss": 6.5},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        return [{"seconds": 2.4, "command": ["python", *chain[0].arguments]}]

    error = studies.StageError("the second run ended with exit code 1")
    monkeypatch.setattr(
        studies, "run_chains", make_run_chains("k", begun, leave, error)
    )
    flags = flags_of(tmp_path)
    with pytest.raises(UsageError, match="exit code 1"):
        precision_study.main(flags)
    (record,) = precision_report.read_records(str(tmp_path / "precision.jsonl"))
    assert record["scores"] == {
        "step": [25, 500],
        "loss": [8.0, 7.0],
        "skipped_updates": [2.0, 0.0],
        "held_out": 6.5,
    }
    precision_study.main(flags)
    assert len(begun) == 7
    assert begun[0] not in begun[1:]
    found = precision_report.read_records(str(tmp_path / "precision.jsonl"))
    assert precision_report.table(found) in (tmp_path / "results.md").read_text()
    assert (tmp_path / "precision.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_that_lacks_a_loss_is_refused(tmp_path):
    record = make_record("float32", 1, [8.0], 6.5)
    path = tmp_path / "precision.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UsageError, match="precision.jsonl, line 1, must be the record"):
        precision_report.read_records(str(path))


def test_what_was_measured_is_within_the_stated_distance():
    found = precision_report.read_records(str(ROOT / "docs" / "precision.jsonl"))
    assert len(found) == 6
    for record, other in precision_report.pairs(found):
        if record["model"] != "float32":
            held_out = [one["scores"]["held_out"] for one in (record, other)]
            largest = max(precision_report.distances(record, other))
            assert max(largest, abs(held_out[0] - held_out[1])) < precision_report.BOUND
