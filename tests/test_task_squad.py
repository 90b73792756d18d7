"""SQuAD's JSON files."""

import json

import pytest

from deberta_tf.files import UsageError
from trainers.tasks.table import TASKS

# A few official contexts begin with spaces.
CONTEXT = "  Zoë lives in Oslo."


@pytest.fixture
def read(tmp_path):
    """Reads a question with answers as a file: its columns."""

    def read_question(answers, name="squad2", **arguments):
        question = {"id": "5a", "question": "Where?", "answers": answers}
        if answers is None:
            del question["answers"]
        paragraph = {"context": CONTEXT, "qas": [question]}
        content = {"data": [{"title": "Zoë", "paragraphs": [paragraph]}]}
        path = tmp_path / "dev.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return TASKS[name].read(str(path), **arguments).columns

    return read_question


def answer(text, start):
    return {"text": text, "answer_start": start}


@pytest.mark.parametrize("name", ["squad1", "squad2"])
def test_answers_start_at_characters_of_the_context_as_it_stands(read, name):
    columns = read([answer("Oslo", 15), answer("Zoë", 2)], name)
    assert columns == {
        "id": ["5a"],
        "question": ["Where?"],
        "context": [CONTEXT],
        "answers": [["Oslo", "Zoë"]],
        "answer_starts": [[15, 2]],
    }
    for text, start in (("Oslo", 15), ("Zoë", 2)):
        assert CONTEXT[start:].startswith(text)


def test_an_answer_that_is_not_at_its_place_is_an_error_that_names_the_question(read):
    with pytest.raises(UsageError, match="'5a' has the answer 'Oslo' at character 16"):
        read([answer("Oslo", 16)])
    with pytest.raises(UsageError, match="question '5a' .* character -5 of its"):
        read([answer("Oslo", -5)])


def test_a_question_without_answer_is_one_in_version_2_only(read):
    columns = read([], "squad2")
    assert (columns["answers"], columns["answer_starts"]) == ([[]], [[]])
    with pytest.raises(UsageError, match="dev.json has no answers in example 1"):
        read([], "squad1")


@pytest.mark.parametrize("name", ["squad1", "squad2"])
def test_answers_may_be_hidden(read, name):
    columns = read(None, name, needs_labels=False)
    assert set(columns) == {"id", "question", "context"}


def test_other_files_are_one_clear_error(read, tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UsageError, match="no file .*x.json"):
        TASKS["squad1"].read(str(path))
    for text, message in (
        ("{", "x.json is not JSON"),
        ("[]", "x.json must hold a JSON object"),
        ('{"data": 5}', "x.json, row 1: 'data' must be list. Found: 5"),
        (
            '{"data": [{"paragraphs": ["p"]}]}',
            "object with 'qas' is needed. Found: 'p'",
        ),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            TASKS["squad1"].read(str(path))
