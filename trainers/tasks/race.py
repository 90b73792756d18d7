"""RACE, from TFDS or its folders of text files; SPEC 9.3."""

import os
import pathlib
import re

from deberta_tf.files import UsageError
from trainers import sources
from trainers.tasks.record import Record, field

LETTERS = ("A", "B", "C", "D")
# Of a question and an option.
MAX_CHOICE_LENGTH = 160


def read_race(path):
    """Rows of RACE, one an article, of all .txt files in a folder and below it.

    The official ones are RACE/train/high/1.txt and so on.
    """
    if not os.path.isdir(path):
        raise UsageError(f"no folder {path!r}")
    names = sorted(str(name) for name in pathlib.Path(path).rglob("*.txt"))
    rows = [sources.read_json(name) for name in names]
    # As TFDS has it.
    return [{**row, "example_id": row.get("id")} for row in rows]


def race_examples(row):
    """The questions about an article: each choice is the question and an option."""
    article = normalize(field(row, "article"))
    name = field(row, "example_id")
    level = re.match("high|middle", name)
    if not level:
        raise ValueError(f"an id begins with 'high' or 'middle'. Found: {name!r}")
    questions = field(row, "questions", list)
    options = field(row, "options", list)
    # Absent, or all empty: hidden.
    answers = row.get("answers") or [""] * len(questions)
    if not len(questions) == len(options) == len(answers):
        raise ValueError(
            f"{name} has {len(questions)} questions, {len(options)} lists of options "
            f"and {len(answers)} answers"
        )
    return [
        {
            "id": f"{name}-{number}",
            "level": level[0],
            "texts": [article] * len(LETTERS),
            "choices": _choices(f"{name}-{number}", question, four),
            **_label(f"{name}-{number}", answer),
        }
        for number, (question, four, answer) in enumerate(
            zip(questions, options, answers, strict=True)
        )
    ]


def _choices(name, question, options):
    if len(options) != len(LETTERS):
        raise ValueError(f"question {name} has {len(options)} options, not 4")
    return [f"{normalize(question)} {normalize(option)}" for option in options]


def _label(name, answer):
    if answer == "":
        return {}
    if answer not in LETTERS:
        raise ValueError(f"question {name} has the answer {answer!r}, no letter A to D")
    return {"label": LETTERS.index(answer)}


def normalize(text):
    """Without spaces and underscores at the ends, and with one space between words."""
    return re.sub(r"\s+", " ", text.strip("\t \r\n_"))


def _record(name, levels, folder):
    splits = ("train", "dev", "test")
    return Record(
        name=name,
        kind="choices",
        labels=LETTERS,
        builder="+".join(f"race/{level}" for level in levels),
        splits={split: split for split in splits},
        files={split: split + folder for split in splits},
        scores=("accuracy",),
        best_by="accuracy",
        max_choice_length=MAX_CHOICE_LENGTH,
        read_file=read_race,
        convert=race_examples,
    )


RECORDS = (
    _record("race", ("middle", "high"), ""),
    _record("race_high", ("high",), "/high"),
    _record("race_middle", ("middle",), "/middle"),
)
