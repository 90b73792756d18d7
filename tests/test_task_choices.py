"""RACE's folders and SWAG's CSV files."""

import json

import pytest

from deberta_tf.files import UsageError
from trainers.tasks import race
from trainers.tasks.table import TASKS


def write_article(folder, level, number, **changes):
    row = {
        "id": f"{level}{number}.txt",
        "article": " Tom\nran  home. ",
        "questions": ["He _ .", "Who?"],
        "options": [["ran", "sat", "slept", "ate"], ["Tom", "Ann", "Bob", "Kim"]],
        "answers": ["A", "C"],
        **changes,
    }
    path = folder / "train" / level / f"{number}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), encoding="utf-8")


def read_race(folder, name="race", **arguments):
    task = TASKS[name]
    return task.read(task.source("train", str(folder)), **arguments).columns


def test_each_choice_of_race_is_the_question_and_an_option(tmp_path):
    write_article(tmp_path, "high", 3)
    columns = read_race(tmp_path)
    assert columns["id"] == ["high3.txt-0", "high3.txt-1"]
    assert columns["texts"] == [["Tom ran home."] * 4] * 2
    assert columns["choices"][0] == [
        "He _ . ran",
        "He _ . sat",
        "He _ . slept",
        "He _ . ate",
    ]
    assert columns["label"] == [0, 2]


def test_levels_of_race_are_read_together_or_apart(tmp_path):
    write_article(tmp_path, "middle", 1)
    write_article(tmp_path, "high", 2)
    assert read_race(tmp_path)["level"] == ["high"] * 2 + ["middle"] * 2
    assert read_race(tmp_path, "race_middle")["level"] == ["middle"] * 2
    assert TASKS["race"].source("dev") == "tfds:race/middle+race/high:dev"


def test_race_loses_spaces_and_underscores_at_ends_only():
    assert race.normalize("\t_ He  is\r\n_ now. _") == "He is _ now."


@pytest.mark.parametrize("answers", [[], ["", ""]])
def test_answers_of_race_may_be_hidden(tmp_path, answers):
    write_article(tmp_path, "high", 1, answers=answers)
    assert "label" not in read_race(tmp_path, needs_labels=False)
    with pytest.raises(UsageError, match="has no label in example 1"):
        read_race(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ["A"]}, "high1.txt has 2 questions, 2 lists .* and 1 answers"),
        ({"answers": ["A", "E"]}, "high1.txt-1 has the answer 'E', no letter A to D"),
        ({"options": [["a"], ["b"]]}, "question high1.txt-0 has 1 options, not 4"),
        ({"id": "1.txt"}, "begins with 'high' or 'middle'. Found: '1.txt'"),
        ({"article": None}, "'article' must be str. Found: None"),
    ],
)
def test_mistakes_in_race_are_named(tmp_path, changes, message):
    write_article(tmp_path, "high", 1, **changes)
    with pytest.raises(UsageError, match=message):
        read_race(tmp_path)


def test_a_folder_of_race_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(UsageError, match="no folder .*train"):
        read_race(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="train has no examples of race"):
        read_race(tmp_path)


HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,"
ROW = '0,lsmdc,1,"He runs, then. She","He runs, then.",She,gold,sits.,eats.,'


@pytest.fixture
def swag(tmp_path):
    def read(header, row, **arguments):
        path = tmp_path / "val.csv"
        path.write_text(f"{header}\n{row}\n", encoding="utf-8")
        return TASKS["swag"].read(str(path), **arguments).columns

    return read


def test_endings_of_swag_go_on_from_the_second_sentence(swag):
    columns = swag(HEADER + "ending2,ending3,label", ROW + "waves.,sleeps.,3")
    assert columns == {
        "id": [0],
        "texts": [["He runs, then."] * 4],
        "choices": [["She sits.", "She eats.", "She waves.", "She sleeps."]],
        "label": [3],
    }


def test_the_test_set_of_swag_has_no_labels(swag):
    header, row = HEADER + "ending2,ending3", ROW + "waves.,sleeps."
    assert "label" not in swag(header, row, needs_labels=False)
    with pytest.raises(UsageError, match="val.csv has no label in example 1"):
        swag(header, row)


def test_mistakes_in_swag_are_named(swag):
    with pytest.raises(UsageError, match="row 1: label '4' is none of 0, 1, 2, 3"):
        swag(HEADER + "ending2,ending3,label", ROW + "waves.,sleeps.,4")
    with pytest.raises(UsageError, match="row 1: no 'ending3'; found: '', 'video-id'"):
        swag(HEADER + "ending2,label", ROW + "waves.,1")
