"""SuperGLUE's JSONL files, and places of mentions in texts."""

import json

import pytest

from deberta_tf.files import UsageError
from trainers.tasks import mentions
from trainers.tasks.table import TASKS


@pytest.fixture
def read(tmp_path):
    """Reads rows as a file of a data set: its columns."""

    def read_rows(name, *rows, **arguments):
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return TASKS[name].read(str(path), **arguments).columns

    return read_rows


@pytest.mark.parametrize(
    ("name", "row", "label"),
    [
        ("boolq", {"question": "b", "passage": "a", "label": True}, "true"),
        ("boolq", {"question": "b", "passage": "a", "label": False}, "false"),
        ("cb", {"premise": "a", "hypothesis": "b", "label": "neutral"}, "neutral"),
        (
            "superglue_rte",
            {"premise": "a", "hypothesis": "b", "label": "entailment"},
            "entailment",
        ),
        (
            "axb",
            {"sentence1": "a", "sentence2": "b", "label": "not_entailment"},
            "not_entailment",
        ),
        (
            "axg",
            {"premise": "a", "hypothesis": "b", "label": "entailment"},
            "entailment",
        ),
    ],
)
def test_pairs_of_texts(read, name, row, label):
    columns = read(name, {**row, "idx": 7})
    assert columns == {"id": [7], "text": ["a"], "text_pair": ["b"], "label": [label]}


def test_the_effect_comes_second_in_copa(read):
    row = {"premise": "p", "choice1": "c1", "choice2": "c2"}
    columns = read(
        "copa",
        {**row, "question": "cause", "label": 1, "idx": 0},
        {**row, "question": "effect", "label": 0, "idx": 1},
    )
    assert columns == {
        "id": [0, 1],
        "texts": [["c1", "c2"], ["p", "p"]],
        "choices": [["p", "p"], ["c1", "c2"]],
        "label": [1, 0],
    }
    with pytest.raises(UsageError, match="must be 'cause' or 'effect'. Found: 'why'"):
        read("copa", {**row, "question": "why", "label": 1})
    with pytest.raises(UsageError, match="label 2 is none of 'choice1', 'choice2'"):
        read("copa", {**row, "question": "cause", "label": 2})


def multirc(**answer):
    answers = [{"text": "yes", "idx": 3, **answer}]
    questions = [{"question": "q?", "idx": 2, "answers": answers}]
    return {"idx": 1, "passage": {"text": "p", "questions": questions}}


def test_answers_of_multirc_follow_their_question(read):
    assert read("multirc", multirc(label=1)) == {
        "id": [{"paragraph": 1, "question": 2, "answer": 3}],
        "group": [(1, 2)],
        "text": ["p"],
        "text_pair": ["q? yes"],
        "label": ["true"],
    }
    assert read("multirc", multirc(label=0))["label"] == ["false"]
    assert "label" not in read("multirc", multirc(), needs_labels=False)
    with pytest.raises(UsageError, match="row 1: label 2 is none of"):
        read("multirc", multirc(label=2))


PASSAGE = "Zoë met Ann.\n@highlight\nAnn left"


def record(**query):
    query = {"query": "@placeholder left", "idx": 4, **query}
    entities = [{"start": 8, "end": 10}, {"start": 0, "end": 2}]
    passage = {"text": PASSAGE, "entities": entities}
    return {"idx": 3, "passage": passage, "qas": [query]}


def test_ends_of_entities_are_excluded_and_count_characters(read):
    answers = [{"start": 8, "end": 10, "text": "Ann"}] * 2
    columns = read("record", record(answers=answers))
    assert columns == {
        "id": [{"passage": 3, "query": 4}],
        "passage": [PASSAGE],
        "query": ["@placeholder left"],
        "entities": [[(0, 3), (8, 11)]],
        "answers": [["Ann"]],
    }
    assert [PASSAGE[start:end] for start, end in columns["entities"][0]] == [
        "Zoë",
        "Ann",
    ]


def test_mistakes_in_record_are_named(read):
    assert "answers" not in read("record", record(), needs_labels=False)
    with pytest.raises(UsageError, match="x.jsonl has no answers in example 1"):
        read("record", record())
    with pytest.raises(UsageError, match="no '@placeholder' in the query 'left'"):
        read("record", record(query="left"))
    row = record()
    row["passage"]["entities"][0]["end"] = 99
    with pytest.raises(UsageError, match="row 1: characters 8 to 100 are no place"):
        read("record", row)
    with pytest.raises(UsageError, match="row 1: 'passage' must be dict. Found: 'p'"):
        read("record", {**row, "passage": "p"})


def test_the_marked_word_of_wic_is_in_each_sentence(read):
    row = {"sentence1": "é bank", "sentence2": "bank", "idx": 0, "label": True}
    row |= {"word": "bank", "start1": 2, "end1": 6, "start2": 0, "end2": 4}
    assert read("wic", row) == {
        "id": [0],
        "text": ["é bank"],
        "text_pair": ["bank"],
        "label": ["true"],
        "spans": [[(2, 6), (0, 4)]],
    }
    with pytest.raises(UsageError, match="characters 0 to 5 are no place in a text of"):
        read("wic", {**row, "end2": 5})


def test_words_of_wsc_become_characters(read):
    target = {"span1_text": "Mark", "span1_index": 0}
    target |= {"span2_text": "He", "span2_index": 4}
    text = "Mark told Zoë lies. (He) lied."
    row = {"text": text, "target": target, "idx": 2, "label": False}
    assert read("wsc", row) == {
        "id": [2],
        "text": [text],
        "label": ["false"],
        "spans": [[(0, 4), (21, 23)]],
    }
    target["span2_text"] = "She"
    with pytest.raises(UsageError, match="row 1: 'She' is not in the text 'Mark told"):
        read("wsc", row)


@pytest.mark.parametrize(
    ("text", "mention", "word", "found"),
    [
        ("the cat and he", "he", 3, "he"),
        ("he, then he", "he", 2, "he"),
        ("Bob and the Cat.", "The cat", 2, "the Cat"),
        ("a big\ndog ran", "big dog.", 1, "big\ndog"),
        ("so theyscold us", "they scold", 1, "theyscold"),
        ("Kamenev wrote and then Zinoviev", "Kamenev and Zinoviev", 0, None),
    ],
)
def test_a_mention_is_found_where_letters_agree(text, mention, word, found):
    start, end = mentions.find_mention(text, mention, word)
    assert text[start:end] == (found or text)
    assert start == text.rindex(found or text)


def test_a_mention_beyond_the_text_is_an_error():
    with pytest.raises(ValueError, match="no word 2 in a text of 2 words"):
        mentions.find_mention("he ran", "he", 2)
    with pytest.raises(ValueError, match="'...' is not in the text"):
        mentions.find_mention("he ... ran", "...", 1)


def test_entities_without_places_are_found_everywhere():
    text = "New York: York is not in New Yorkshire"
    spans = mentions.find_all(text, ["York", "New York"])
    assert [text[start:end] for start, end in spans] == ["New York", "York", "York"]
    # Nowhere a whole word.
    assert mentions.find_all(text, ["shire"]) == [(33, 38)]
    with pytest.raises(ValueError, match="'Ann' is not in its passage"):
        mentions.find_all(text, ["Ann"])
