"""The model card tells what the trainer left beside a preset, and no more than that."""

import json
import pathlib

import pytest

from deberta_tf import (
    DebertaQuestionAnswering,
    DebertaSentencePieceTokenizer,
    DebertaTextClassifier,
)
from tests.finetuning import flags, save_preset, write_data
from tests.small_models import make_backbone
from tests.test_deployment import facts
from tests.test_warm_up import signatures_of
from tools import export_saved_model, model_card
from trainers import finetune

RESULTS = {
    "step": 12,
    "dev": {"accuracy": 0.91234, "macro_f1": 0.9},
    "test": None,
    "majority_class": {"label": "no", "dev": 0.5},
    "parameters": 4514,
}
CONFIG = {
    "settings": {
        "preset": "hf://microsoft/deberta-v3-base",
        "train": "/elsewhere/reviews/train.csv",
        "text_columns": ["title", "body"],
        "task": None,
        "epochs": 3.0,
    },
    "data": {"train": "abc123", "dev": "def456", "labels": ["no", "yes"]},
}


@pytest.fixture
def make_card(tmp_path, sentencepiece_proto):
    """The card of a task of a class, loaded from `tmp_path/preset`."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)

    def make_card(task_class=DebertaTextClassifier, weights="float32", **arguments):
        task = task_class(
            make_backbone(num_layers=1),
            preprocessor=task_class.preprocessor_cls(tokenizer, 24),
            **arguments,
        )
        return model_card.make_card(
            task,
            signatures_of(task),
            facts(sequence_length=24),
            str(tmp_path / "preset"),
            weights,
            "python -m tools.export_saved_model --preset preset",
            consumer=12,
        )

    return make_card


@pytest.fixture
def write_run(tmp_path):
    """Writes what `trainers.finetune` leaves, see RESULTS and CONFIG."""

    def write_run(**changed):
        (tmp_path / "preset").mkdir()
        for name, content in {
            "scores": {"step": 12, **RESULTS["dev"]},
            "results": RESULTS,
            "config": CONFIG,
            **changed,
        }.items():
            folder = tmp_path / "preset" if name == "scores" else tmp_path
            (folder / f"{name}.json").write_text(json.dumps(content))

    return write_run


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_scores_and_data_of_a_run_are_told(make_card, write_run):
    write_run()
    card = make_card(num_classes=2)
    scores = section(card, "Scores")
    assert "| dev | accuracy | 0.9123 |" in scores
    assert "| dev and test, always the most frequent class | dev | 0.5000 |" in scores
    assert "test |" not in scores.replace("dev and test", "")
    data = section(card, "Training data")
    assert "began as: hf://microsoft/deberta-v3-base" in data
    assert "columns of the text: title, body" in data
    assert "digest of train: `abc123`" in data
    assert "None" not in data


def test_a_path_of_the_machine_is_told_by_its_last_part(make_card, write_run):
    write_run()
    data = section(make_card(num_classes=2), "Training data")
    assert "examples to train on: train.csv" in data
    assert "/elsewhere" not in data


def test_results_of_another_run_are_left_out(make_card, write_run):
    write_run(scores={"step": 8, **RESULTS["dev"]})
    card = make_card(num_classes=2)
    scores = section(card, "Scores")
    assert "| dev | accuracy | 0.9123 |" in scores
    assert "most frequent class" not in scores
    assert "Data: not stated." in section(card, "Training data")


@pytest.mark.parametrize("scores", [{}, RESULTS["dev"], [12]])
def test_what_stands_beside_a_preset_without_its_step_is_not_its_own(
    make_card, write_run, scores
):
    write_run(scores=scores)
    card = make_card(num_classes=2)
    assert "most frequent class" not in section(card, "Scores")
    assert "Data: not stated." in section(card, "Training data")


@pytest.mark.parametrize(
    "changed",
    [
        {"config": ["other"]},
        {"config": {"settings": 1}},
        {"config": {**CONFIG, "data": 3}},
        {"results": "other"},
        {"scores": None},
    ],
)
def test_files_that_are_not_the_trainers_do_no_harm(make_card, write_run, changed):
    write_run(**changed)
    assert "digest of" not in make_card(num_classes=2)


def test_files_that_are_no_json_do_no_harm(make_card, write_run, tmp_path):
    write_run()
    (tmp_path / "results.json").write_bytes(b"\xff{")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "Data: not stated." in make_card(num_classes=2)


def test_what_nobody_told_is_not_stated(make_card):
    card = make_card(num_classes=2)
    assert section(card, "Scores").strip() == "Not stated."
    assert "Data: not stated." in section(card, "Training data")
    assert "| classes | `0`, `1` (their names are not stated) |" in card


def test_scores_are_said_to_be_of_other_weights(make_card, write_run):
    write_run()
    scores = section(make_card(num_classes=2, weights="int8"), "Scores")
    assert "Of the weights in float32." in scores


def test_a_regression_has_no_classes(make_card):
    card = make_card(num_classes=1)
    assert "scores a text, or a pair of texts, with a number" in card
    assert "| classes | none: a number |" in card


def test_each_task_tells_what_becomes_of_long_inputs(make_card):
    limits = section(make_card(DebertaQuestionAnswering), "Limits")
    assert "longest row is of 24 tokens" in limits
    assert "a longer context goes on in further rows" in limits


def test_the_figures_are_the_models(make_card, sentencepiece_proto):
    model = section(make_card(num_classes=2), "Model")
    task = DebertaTextClassifier(make_backbone(num_layers=1), 2)
    assert f"- parameters: {task.count_params():,}\n" in model
    assert "- layers: 1\n- width: 16\n- heads: 2\n" in model
    digest = DebertaSentencePieceTokenizer(sentencepiece_proto).fingerprint()
    assert f"SHA-256 `{digest}`" in model


def test_the_versions_are_those_in_use(make_card):
    versions = section(make_card(num_classes=2), "Versions")
    project = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    (version,) = (
        line.split('"')[1]
        for line in project.read_text().splitlines()
        if line.startswith("version = ")
    )
    assert f"- deberta-tf {version}\n" in versions
    assert "- tensorflow 2." in versions
    assert "- lowest version of GraphDef: 12" in versions
    assert "tensorflow/serving:" in versions


@pytest.mark.slow
def test_a_fine_tuned_run_gets_its_card(tmp_path, sentences, sentencepiece_proto):
    preset = save_preset(str(tmp_path / "pretrained"), sentencepiece_proto)
    data = write_data(tmp_path, sentences)
    assert not finetune.main(flags(preset, data, tmp_path / "run"))
    export_saved_model.main(
        [f"--preset={tmp_path / 'run' / 'preset'}", f"--output={tmp_path / 'served'}"]
    )
    card = (tmp_path / "served" / "deployment" / "MODEL_CARD.md").read_text("utf-8")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for split in ("dev", "test"):
        score = results[split]["accuracy"]
        assert f"| {split} | accuracy | {score:.4f} |" in card
    assert "examples to train on: train.csv" in card
    assert "| classes | `no`, `yes` |" in card
