"""Files with a word and its tag a line."""

import pytest

from deberta_tf.files import UsageError
from trainers.tasks import conll
from trainers.tasks.table import TASKS


@pytest.fixture
def read(tmp_path):
    def read_text(text, name="tags", **arguments):
        path = tmp_path / "x.txt"
        path.write_text(text, encoding="utf-8")
        return TASKS[name].read(str(path), **arguments).columns

    return read_text


CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER

-DOCSTART- -X- -X- O

Oslo NNP I-NP I-LOC
Rome NNP I-NP B-LOC
"""


def test_sentences_of_a_document_share_its_number(read):
    columns = read(CONLL, "conll2003")
    assert columns["words"] == [["EU", "rejects"], ["Peter"], ["Oslo", "Rome"]]
    assert columns["document"] == [1, 1, 2]
    assert columns["id"] == [0, 1, 2]


def test_without_marks_every_sentence_is_a_document(read):
    assert read("a O\n\n\nb O\n \nc O")["document"] == [0, 1, 2]


def test_entities_of_conll2003_begin_with_b_and_tags_of_users_stay(read):
    tags = read(CONLL, "conll2003")["tags"]
    assert tags == [["B-ORG", "O"], ["B-PER"], ["B-LOC", "B-LOC"]]
    assert read(CONLL)["tags"] == [["I-ORG", "O"], ["I-PER"], ["I-LOC", "B-LOC"]]


def test_entities_begin_where_the_type_changes():
    tags = ["I-PER", "I-PER", "I-ORG", "O", "B-LOC", "I-LOC", "B-LOC"]
    begun = ["B-PER", "I-PER", "B-ORG", "O", "B-LOC", "I-LOC", "B-LOC"]
    assert conll.begin_entities(tags) == begun
    assert conll.begin_entities(begun) == begun


def test_columns_are_apart_by_spaces_or_tabs(read):
    assert read("a  X\r\n\r\nb c\tY\r\n1\u00a0000 Z\n") == {
        "id": [0, 1],
        "words": [["a"], ["b c", "1\u00a0000"]],
        "tags": [["X"], ["Y", "Z"]],
        "document": [0, 1],
    }


def test_words_alone_have_no_tags(read):
    columns = read("a\nb\n\nc\n", needs_labels=False)
    assert columns["words"] == [["a", "b"], ["c"]]
    assert "tags" not in columns
    with pytest.raises(UsageError, match="x.txt has no tags in example 1"):
        read("a\nb\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "x.txt line 2 must have 2 columns, .*Found: 'b'"),
        ("a\tO\n\nb\t\n", "x.txt line 3 must have 2 columns, .* and none empty"),
        ("\n\n", "x.txt has no examples of tags"),
    ],
)
def test_mistakes_are_named(read, text, message):
    with pytest.raises(UsageError, match=message):
        read(text)


def test_strange_tags_of_conll2003_are_named(read):
    with pytest.raises(UsageError, match="row 1: tag 'B-CAT' is none of 'O', 'B-MISC'"):
        read("a B-CAT\n", "conll2003")
