import json

import pytest

from deberta_tf.files import UsageError
from tools import sift_report

SIZES = {"train": {"rows": 3}}


def make_record(data, model, seed, seconds=60, **scores):
    return {
        "data": data,
        "model": model,
        "seed": seed,
        "settings": {},
        "facts": {"checkpoint": "c0de", "data": SIZES},
        "commands": ["python -m trainers.finetune"],
        "seconds": seconds,
        "scores": {**dict.fromkeys(sift_report.CONDITIONS, 0.5), **scores},
    }


def records():
    found = []
    for seed, without, with_ in ((1, 0.8, 0.9), (2, 0.7, 0.6), (3, 0.6, 0.7)):
        found.append(make_record("sentiment", "plain", seed, clean=without))
        found.append(make_record("sentiment", "sift", seed, seconds=180, clean=with_))
    # No run with SiFT to pair it with.
    found.append(make_record("sentiment", "plain", 4, clean=0.7))
    return found


def test_the_table_has_both_means_and_what_differs_between_runs_of_a_seed():
    lines = sift_report.table(records()).splitlines()
    assert len(lines) == 2 + 6 + 2
    cells = {line.split(" | ")[1]: line.strip("| ").split(" | ") for line in lines[2:8]}
    # Differences 0.1, -0.1, 0.1: mean 0.0333, deviation 0.1155.
    assert cells["test, clean"] == [
        "sentiment",
        "test, clean",
        "4 / 3",
        "0.7000 ± 0.0816",
        "0.7333 ± 0.1528",
        "+0.0333 ± 0.1155",
        "2 of 3",
    ]
    # Equal is not better.
    assert cells["test, 30 % typos"][-2:] == ["+0.0000 ± 0.0000", "0 of 3"]
    assert lines[-1] == (
        "7 runs, 13:00 (m:ss), each run on one thread. "
        "A run: without SiFT 1:00, with SiFT 3:00."
    )


def test_the_plot_is_drawn_and_the_table_put_into_its_document(tmp_path, capsys):
    results = tmp_path / "sift_study.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in records()))
    document = tmp_path / "results.md"
    document.write_text("<!-- sift_study -->\n<!-- end of sift_study -->\n")
    sift_report.main([f"--results={results}", f"--document={document}"])
    assert capsys.readouterr().out in document.read_text()
    assert (tmp_path / "sift_study.png").read_bytes().startswith(b"\x89PNG")


def test_the_dots_of_the_plot_are_the_differences_of_the_seeds(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        sift_report, "save_figure", lambda figure, path: figures.append(figure)
    )
    sift_report.draw(records(), "unused.png")
    panel = figures[0].axes[0]
    clean = list(sift_report.CONDITIONS).index("clean")
    places, points = panel.collections[2 * clean].get_offsets().T
    assert set(places) == {clean}
    assert points.tolist() == pytest.approx([10, -10, 10])


def test_a_record_that_lacks_a_score_is_refused(tmp_path):
    record = make_record("sentiment", "plain", 1)
    del record["scores"]["10 % typos"]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UsageError, match="a.jsonl, line 1, must be the record"):
        sift_report.read_records(str(path))
