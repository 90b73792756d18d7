"""tools/ensemble.py: averages of saved predictions."""

import json
import os

import pytest

from deberta_tf.files import UsageError, read_json_lines, write_json_lines
from tools import ensemble


@pytest.fixture
def write(tmp_path):
    """Writes predictions-test.jsonl of one run after the other; returns its path."""

    def write_run(*predictions):
        folder = tmp_path / f"run{len(os.listdir(tmp_path))}"
        folder.mkdir()
        path = str(folder / "predictions-test.jsonl")
        write_json_lines(path, predictions)
        return path

    return write_run


def run(task, paths, output, *flags):
    argv = ["--task", task, "--split", "test", "--output", str(output), *flags]
    ensemble.main([*argv, "--predictions", *paths])
    return read_json_lines(str(output / "predictions-test.jsonl"), dict.copy, "any")


def classified(number, prediction, **scores):
    return {"id": number, "prediction": prediction, "scores": scores}


def test_classes_are_averaged_and_the_best_is_predicted_and_handed_in(write, tmp_path):
    paths = [
        write(classified(1, "neutral", entailment=0.25, neutral=0.75)),
        write(classified(1, "neutral", entailment=0.375, neutral=0.625)),
        write(classified(1, "entailment", entailment=1.0, neutral=0.0)),
    ]
    # Ids of GLUE begin at 0.
    for path in paths:
        zero = classified(0, "neutral", entailment=0.25, neutral=0.75)
        old = read_json_lines(path, dict.copy, "any")
        write_json_lines(path, [*old, zero])
    found = run("mnli", paths, tmp_path / "averaged")
    mean = 1.625 / 3
    assert found == [
        classified(1, "entailment", entailment=mean, neutral=1.375 / 3),
        classified(0, "neutral", entailment=0.25, neutral=0.75),
    ]
    submission = tmp_path / "averaged" / "MNLI-m.tsv"
    assert submission.read_text() == "index\tprediction\n0\tneutral\n1\tentailment\n"


def test_a_candidate_that_a_run_lacks_counts_nothing_there():
    runs = [
        [classified("q", "Oslo", Oslo=0.75, Bergen=0.25)],
        [classified("q", "Rome", Rome=0.5, Bergen=0.5)],
    ]
    assert ensemble.average("record", runs) == [
        classified("q", "Oslo", Oslo=0.375, Bergen=0.375, Rome=0.25)
    ]


def test_of_equal_means_the_first_of_the_first_run_is_taken_in_any_order_of_the_runs():
    # Added one by one, these differ in their last digits.
    rows = [(0.3, 0.1), (0.1, 0.2), (0.2, 0.3)]
    runs = [[classified(0, "a", b=b, a=a)] for a, b in rows]
    for order in (runs, runs[::-1], [runs[1], runs[2], runs[0]]):
        (found,) = ensemble.average("rte", order)
        assert found["prediction"] == "b"


def test_choices_stay_numbers():
    runs = [
        [{"id": 0, "prediction": 0, "scores": {"0": 0.5625, "1": 0.4375}}],
        [{"id": 0, "prediction": 1, "scores": {"0": 0.25, "1": 0.75}}],
    ]
    (found,) = ensemble.average("copa", runs)
    assert found["prediction"] == 1
    assert isinstance(found["prediction"], int)


def test_regressions_are_averaged_and_what_else_a_line_holds_is_the_first_runs():
    runs = [
        [{"id": 0, "prediction": 2.0, "label": 3.0}],
        [{"id": 0, "prediction": 4.5, "label": 3.0}],
    ]
    expected = [{"id": 0, "prediction": 3.25, "label": 3.0}]
    assert ensemble.average("stsb", runs) == expected


def test_tags_are_averaged_word_by_word():
    runs = [
        [
            {
                "id": 0,
                "prediction": ["O", "O"],
                "scores": [{"O": 0.75, "B-PER": 0.25}, {"O": 0.625, "B-PER": 0.375}],
            }
        ],
        [
            {
                "id": 0,
                "prediction": ["O", "B-PER"],
                "scores": [{"O": 0.625, "B-PER": 0.375}, {"O": 0.25, "B-PER": 0.75}],
            }
        ],
    ]
    (found,) = ensemble.average("conll2003", runs)
    assert found["prediction"] == ["O", "B-PER"]
    assert found["scores"][1] == {"O": 0.4375, "B-PER": 0.5625}


def answered(text, no_answer_score, **scores):
    line = {"id": "56be", "prediction": text, "scores": {"": 0.5, **scores}}
    return {**line, "no_answer_score": no_answer_score}


@pytest.mark.parametrize(
    ("flags", "answer"), [((), ""), (("--no_answer_threshold", "1.5"), "Rome")]
)
def test_the_mean_no_answer_score_decides_whether_squad2_has_an_answer(
    write, tmp_path, flags, answer
):
    paths = [
        write(answered("Rome", -1.0, Rome=0.375, Oslo=0.125)),
        write(answered("", 3.0, Rome=0.25, Oslo=0.25)),
    ]
    (found,) = run("squad2", paths, tmp_path / "averaged", *flags)
    assert (found["prediction"], found["no_answer_score"]) == (answer, 1.0)
    read = lambda name: json.loads((tmp_path / "averaged" / name).read_text())  # noqa: E731
    assert read("SQuAD-2.0-test.json") == {"56be": answer}
    assert read("SQuAD-2.0-test-na-prob.json") == {"56be": 1.0}


def test_without_that_score_no_answer_is_a_candidate_of_squad2_and_not_of_squad1():
    runs = [[classified("56be", "", **{"": 0.75, "Rome": 0.25})]]
    assert ensemble.average("squad2", runs)[0]["prediction"] == ""
    assert ensemble.average("squad1", runs)[0]["prediction"] == "Rome"


def test_runs_are_brought_into_the_order_of_the_first(write):
    ids = [{"paragraph": 0, "answer": 1}, {"paragraph": 0, "answer": 0}]
    lines = [{"id": one, "prediction": 1.0} for one in ids]
    runs = ensemble.read_runs([write(*lines), write(*lines[::-1])])
    assert runs == [lines, lines]


def test_what_no_server_takes_is_averaged_all_the_same(write, tmp_path, capsys):
    path = write({"id": "high1", "prediction": 0, "scores": {"0": 0.75, "1": 0.25}})
    run("race", [path, path], tmp_path / "averaged")
    assert os.listdir(tmp_path / "averaged") == ["predictions-test.jsonl"]
    assert "no server takes 'race'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0, 1, 2], [0, 2], r"run0\S+ has the id 1, which \S+run1\S+ lacks"),
        ([0], [0, 4, 5], r"run1\S+ has the id 4, which \S+run0\S+ lacks"),
        ([0, 0], [0], r"run0\S+ has the id 0 more than once"),
        ([0], [], r"run1\S+ is empty"),
    ],
)
def test_runs_of_other_examples_are_refused(write, first, second, message):
    paths = [
        write(*[{"id": i, "prediction": 1.0} for i in ids]) for ids in (first, second)
    ]
    with pytest.raises(UsageError, match=message):
        ensemble.read_runs(paths)


@pytest.mark.parametrize(
    "line",
    [
        {"row": 1, "prediction": 1.0},
        {"id": 0},
        {"id": 0, "prediction": "neutral"},
        {"id": 0, "prediction": "neutral", "scores": {}},
        {"id": 0, "prediction": "neutral", "scores": "high"},
        {"id": 0, "prediction": "neutral", "scores": {"neutral": float("nan")}},
        {"id": 0, "prediction": 1, "scores": {"first": 1.0}},
        {"id": 0, "prediction": ["O", "O"], "scores": [{"O": 1.0}]},
        {"id": 0, "prediction": ["O"], "scores": [{"B-PER": 1.0}]},
        ["neutral"],
    ],
)
def test_a_line_that_is_no_prediction_is_named(write, line):
    with pytest.raises(UsageError, match="line 2, must be a prediction"):
        ensemble.read_runs([write({"id": 7, "prediction": 1.0}, line)])


@pytest.mark.parametrize(
    "other",
    [
        {"id": 0, "prediction": 1.0},
        {"id": 0, "prediction": ["O"], "scores": [{"O": 1.0}]},
        {**classified(0, "no", no=1.0), "no_answer_score": 0.5},
    ],
)
def test_different_kinds_of_predictions_are_refused(other):
    runs = [[classified(0, "no", no=1.0)], [other]]
    with pytest.raises(UsageError, match="different kinds of predictions for id 0"):
        ensemble.average("rte", runs)


def test_sentences_of_different_lengths_are_refused():
    word = {"O": 1.0}
    runs = [[{"id": 0, "prediction": ["O"] * n, "scores": [word] * n}] for n in (1, 2)]
    with pytest.raises(UsageError, match="for id 0; scores: 1 words, 2 words"):
        ensemble.average("conll2003", runs)


def test_nothing_is_written_where_the_submission_is_refused(write, tmp_path):
    path = write(classified(1, "entailment", entailment=1.0))
    with pytest.raises(ValueError, match="rte: the ids must be 0 to 1"):
        run("rte", [path], tmp_path / "averaged")
    assert not (tmp_path / "averaged").exists()


def test_no_run_is_overwritten(write, tmp_path):
    path = write({"id": 0, "prediction": 1.0})
    with pytest.raises(UsageError, match="would be overwritten"):
        run("stsb", [path], tmp_path / "run0")


@pytest.mark.parametrize(
    ("task", "paths", "flags", "message"),
    [
        ("mnlii", ["x"], [], "invalid choice: 'mnlii'"),
        ("mnli", ["missing.jsonl"], [], "no file 'missing.jsonl'"),
        (
            "mnli",
            ["x"],
            ["--no_answer_threshold", "1"],
            "nothing without --task squad2",
        ),
    ],
)
def test_wrong_flags_are_told(tmp_path, task, paths, flags, message):
    with pytest.raises(UsageError, match=message):
        run(task, paths, tmp_path / "averaged", *flags)
