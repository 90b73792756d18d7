"""GLUE's and XNLI's TSV files."""

import pytest

from deberta_tf.files import UsageError
from trainers.tasks.table import TASKS


def read(path, name, *lines, **arguments):
    """Columns of a file of lines, whose fields stand apart by "|" here."""
    text = "\n".join(lines).replace("|", "\t") + "\n"
    path.write_text(text, encoding="utf-8")
    return TASKS[name].read(str(path), **arguments).columns


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.tsv"


def test_cola_has_a_header_line_in_its_test_set_only(path):
    columns = read(path, "cola", "gj04|1||He ran.", 'bc01|0|*|Ran "he.')
    assert columns == {
        "id": [0, 1],
        "text": ["He ran.", 'Ran "he.'],
        "label": ["acceptable", "unacceptable"],
    }
    hidden = read(path, "cola", "index|sentence", "0|He ran.", needs_labels=False)
    assert hidden == {"id": [0], "text": ["He ran."]}


@pytest.mark.parametrize(
    ("name", "header", "line", "pair", "label"),
    [
        ("sst2", "sentence|label", "good|1", ("good",), "positive"),
        (
            "mrpc",
            "Quality|#1 ID|#2 ID|#1 String|#2 String",
            "1|7|8|a|b",
            ("a", "b"),
            "equivalent",
        ),
        (
            "qqp",
            "id|qid1|qid2|question1|question2|is_duplicate",
            "5|7|8|a?|b?|0",
            ("a?", "b?"),
            "not_duplicate",
        ),
        (
            "stsb",
            "index|genre|sentence1|sentence2|score",
            "5|news|a|b|3.800",
            ("a", "b"),
            3.8,
        ),
        (
            "mnli",
            "index|sentence1|sentence2|label1|gold_label",
            "0|a|b|neutral|contradiction",
            ("a", "b"),
            "contradiction",
        ),
        (
            "qnli",
            "index|question|sentence|label",
            "0|q?|s.|entailment",
            ("s.", "q?"),
            "entailment",
        ),
        (
            "rte",
            "index|sentence1|sentence2|label",
            "0|a|b|not_entailment",
            ("a", "b"),
            "not_entailment",
        ),
        (
            "wnli",
            "index|sentence1|sentence2|label",
            "0|a|b|1",
            ("a", "b"),
            "entailment",
        ),
        ("ax", "index|sentence1|sentence2", "0|a|b", ("a", "b"), None),
    ],
)
def test_columns_of_the_official_files(path, name, header, line, pair, label):
    columns = read(path, name, header, line, needs_labels=label is not None)
    segments = dict(zip(("text", "text_pair"), ([text] for text in pair), strict=False))
    labels = {} if label is None else {"label": [label]}
    assert columns == {"id": [0], **segments, **labels}


def test_mrpc_may_begin_with_the_mark_of_spreadsheets(path):
    header = "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String"
    assert read(path, "mrpc", header, "0|7|8|a|b")["label"] == ["not_equivalent"]


def test_broken_rows_are_left_out_and_counted(path, capsys):
    columns = read(
        path,
        "qqp",
        "id|qid1|qid2|question1|question2|is_duplicate",
        "5|7|8|a?|b?|1",
        "6|7|8|a?",
        "7|7|8|a?|b?|",
        "8|7|8|c?|d?|0|too much",
    )
    assert columns["text"] == ["a?", "c?"]
    # The row in the file, as TFDS counts.
    assert columns["id"] == [0, 3]
    assert "2 of 4 rows are broken and left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "rte",
            ["sentence1|label", "a|b"],
            "no column 'sentence2'; found: 'sentence1'",
        ),
        ("rte", [""], "x.tsv has no rows"),
        ("sst2", ["sentence|label", "a|2"], "row 1: label '2' is none of 'negative'"),
        ("mnli", ["sentence1|sentence2|gold_label", "a|b|1"], "label '1' is none of"),
        ("stsb", ["sentence1|sentence2|score", "a|b|nan"], "'nan' is no finite number"),
        ("rte", ["sentence1|sentence2", "a|b"], "x.tsv has no label in example 1"),
    ],
)
def test_mistakes_are_named(path, name, lines, message):
    with pytest.raises(UsageError, match=message):
        read(path, name, *lines)


DEV = ("language|gold_label|sentence1|sentence2|pairID", "de|neutral|a|b|1")


def test_xnli_is_read_in_all_languages_or_one(path):
    lines = (*DEV, "fr|entailment|c|d|1")
    columns = read(path, "xnli", *lines)
    assert columns["language"] == ["de", "fr"]
    assert columns["label"] == ["neutral", "entailment"]
    french = read(path, "xnli_fr", *lines)
    assert french == {
        "id": [1],
        "text": ["c"],
        "text_pair": ["d"],
        "label": ["entailment"],
        "language": ["fr"],
    }
    with pytest.raises(UsageError, match="no examples of xnli_sw"):
        read(path, "xnli_sw", *lines)


def test_translations_of_mnli_have_another_word_for_contradiction(path):
    columns = read(path, "xnli_de", "premise|hypo|label", "a|b|contradictory")
    assert columns == {
        "id": [0],
        "text": ["a"],
        "text_pair": ["b"],
        "label": ["contradiction"],
    }
    assert TASKS["xnli_de"].source("train", "x") == "x/multinli.train.de.tsv"
