import pytest

from deberta_tf.files import UsageError
from tools import evaluation_report

SIZES = {"train": {"rows": 6072}, "dev": {"rows": 845}, "test": {"rows": 1611}}


def make_record(data, model, seed, scores, seconds):
    return {
        "data": data,
        "model": model,
        "seed": seed,
        "settings": {},
        "facts": {"checkpoint": "c0de", "data": SIZES},
        "commands": [f"python -m {model} --seed {seed}"],
        "seconds": seconds,
        "scores": scores,
    }


def both(name, dev, test):
    return {"dev": {name: dev}, "test": {name: test}}


def test_the_table_has_means_spreads_times_and_commands():
    tuned = [
        make_record(
            "entities", "finetuned", seed, {"finetuned": both("f1", dev, test)}, seconds
        )
        for seed, dev, test, seconds in ((2, 0.3, 0.2, 90), (1, 0.5, 0.4, 60))
    ]
    baselines = {
        "majority": both("accuracy", 0.5, 0.25),
        "linear": both("accuracy", 0.75, 0.7),
    }
    records = [*tuned, make_record("sentiment", "baselines", None, baselines, 30)]
    lines = evaluation_report.table(records).splitlines()
    # Deviations of two values: their difference over the root of 2.
    assert lines[2:] == [
        "| sentiment | 6,072 / 845 / 1,611 | most frequent class | accuracy | 0.5000 | "
        "0.2500 | none | 0:30 | 1 |",
        "| sentiment | 6,072 / 845 / 1,611 | linear, TF-IDF | accuracy | 0.7500 | "
        "0.7000 | none | 0:30 | 1 |",
        "| Twitter entities | 6,072 / 845 / 1,611 | DeBERTa, fine-tuned | entity F1 | "
        "0.4000 ± 0.1414 | 0.3000 ± 0.1414 | 2 | 1:15 | 2 |",
        "",
        "```",
        "1: python -m baselines --seed None",
        "2: python -m finetuned --seed 1",
        "```",
        "",
        "3 runs, 3:00 (m:ss), each run on one thread.",
    ]


def test_a_file_without_runs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="none.jsonl holds no runs"):
        evaluation_report.main([f"--results={tmp_path / 'none.jsonl'}"])
