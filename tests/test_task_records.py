"""The table of data sets, and what all their records share."""

import pytest

from deberta_tf.files import UsageError
from trainers.tasks import record
from trainers.tasks.table import TASKS, find

SCORES = {
    "accuracy",
    "f1",
    "matthews",
    "pearson",
    "spearman",
    "macro_f1",
    "exact",
    "precision",
    "recall",
}


def letters(path):
    return [{"text": path, "label": letter} for letter in ("A", "b", None)]


def a_record(read_file=letters, **changes):
    given = {
        "name": "letters",
        "kind": "text",
        "labels": ("a", "b"),
        "builder": "letters/small",
        "splits": {"train": "train", "dev": "other:validation"},
        "files": {"train": "train.tsv", "test": "test.tsv"},
        "scores": ("accuracy",),
        "best_by": "accuracy",
        "read_file": read_file,
        "convert": lambda row: record.text_examples(row, ("text",), ("a", "b")),
    }
    return record.Record(**{**given, **changes})


@pytest.mark.parametrize("name", TASKS)
def test_records_are_consistent(name):
    task = TASKS[name]
    assert task.name == name
    assert task.kind in record.ANSWERS
    assert set(task.scores) <= SCORES
    assert task.best_by in (*task.scores, "mean")
    assert bool(task.splits) == (task.builder is not None)
    # The files have all that TFDS has.
    assert set(task.splits) <= set(task.files)
    if task.labels and task.kind in ("text", "marked"):
        assert [label.lower() for label in task.labels] == list(task.labels)


def test_classes_are_in_the_official_order():
    nli = ("contradiction", "neutral", "entailment")
    assert {TASKS[name].labels for name in ("mnli", "ax", "cb", "xnli_sw")} == {nli}
    two = ("not_entailment", "entailment")
    names = ("qnli", "rte", "wnli", "superglue_rte", "axb", "axg")
    assert {TASKS[name].labels for name in names} == {two}
    assert TASKS["stsb"].labels is None
    assert TASKS["conll2003"].labels == tuple(
        "O B-MISC I-MISC B-PER I-PER B-ORG I-ORG B-LOC I-LOC".split()
    )


def test_a_name_close_to_others_is_told_of_them():
    assert find("mnli") is TASKS["mnli"]
    with pytest.raises(UsageError, match="no task 'sst-2'; there are 'sst2'"):
        find("sst-2")
    with pytest.raises(UsageError, match="'cola', 'sst2', .* 'tags', 'xnli'"):
        find("qwertz")


def test_a_split_is_a_path_or_a_name_of_tfds():
    task = a_record()
    assert task.source("train") == "tfds:letters/small:train"
    assert task.source("dev") == "tfds:other:validation"
    assert task.source("test", "data") == "data/test.tsv"


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="no split 'test' in TFDS; it has 'train', 'd"):
        a_record().source("test")
    with pytest.raises(UsageError, match="no split 'dev' among its files; it has 'tra"):
        a_record().source("dev", "data")
    with pytest.raises(UsageError, match="letters is not in TFDS; name its folder"):
        a_record(builder=None, splits={}).source("train")


def test_hidden_labels_are_no_column_and_an_error_where_they_are_needed():
    data = a_record().read("x.tsv", needs_labels=False)
    assert data.columns == {"text": ["x.tsv"] * 3, "id": [0, 1, 2]}
    assert len(data) == 3
    with pytest.raises(UsageError, match=r"x\.tsv has no label in example 3"):
        a_record().read("x.tsv")


def test_labels_come_by_their_names_in_any_case():
    data = a_record(lambda path: letters(path)[:2]).read("x.tsv")
    assert data.columns["label"] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "a"}, "x.tsv, row 1: no 'text'; found: 'label'"),
        ({"text": 5}, "x.tsv, row 1: 'text' must be str. Found: 5"),
        ({"text": "t", "label": "c"}, "row 1: label 'c' is none of 'a', 'b'"),
        ({"text": "t", "label": 1}, "row 1: label 1 is none of 'a', 'b'"),
        ([], "row 1: an object with 'text' is needed"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row, message):
    with pytest.raises(UsageError, match=message):
        a_record(lambda path: [row]).read("x.tsv")


def test_a_source_without_examples_is_an_error():
    with pytest.raises(UsageError, match=r"x\.tsv has no examples of letters"):
        a_record(lambda path: []).read("x.tsv")
