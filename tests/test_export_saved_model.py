import errno
import json
import os

import pytest
import tensorflow as tf

from deberta_tf import (
    DebertaBackbone,
    DebertaMaskedLM,
    DebertaQuestionAnswering,
    DebertaSentencePieceTokenizer,
    DebertaTextClassifier,
    DebertaTokenClassifier,
)
from deberta_tf.files import run_command
from tests.small_models import make_backbone
from tools import deployment, export_saved_model


@pytest.fixture
def save(tmp_path, sentencepiece_proto):
    """Saves a small task of a class; returns the folder."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)

    def save(task_class, labels):
        task = task_class(
            make_backbone(num_layers=1),
            labels=labels,
            preprocessor=task_class.preprocessor_cls(tokenizer, 16),
        )
        task.save_to_preset(str(tmp_path / "preset"))
        return str(tmp_path / "preset")

    return save


@pytest.fixture
def preset(save):
    return save(DebertaTextClassifier, ["calm", "loud"])


def test_the_command_writes_a_version_that_answers(preset, tmp_path, capsys):
    output = str(tmp_path / "served")
    export_saved_model.main(["--preset", preset, "--output", output])
    assert "exported" in capsys.readouterr().out
    served = tf.saved_model.load(os.path.join(output, "1"))
    answer = served.signatures["serving_default"](text=tf.constant(["nobody"]))
    assert answer["label"].numpy()[0] in (b"calm", b"loud")


@pytest.mark.slow
def test_any_task_is_exported(save, tmp_path):
    preset = save(DebertaTokenClassifier, ["O", "B"])
    output = str(tmp_path / "served")
    export_saved_model.main(["--preset", preset, "--output", output])
    served = tf.saved_model.load(os.path.join(output, "1"))
    words = tf.constant([["nobody", "sold"]])
    labels = served.signatures["serving_default"](words=words)["labels"].numpy()
    assert {*labels.flat} <= {b"O", b"B"}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("DebertaV2ForQuestionAnswering", DebertaQuestionAnswering),
        ("DebertaForSequenceClassification", DebertaTextClassifier),
        ("DebertaV2ForMaskedLM", DebertaMaskedLM),
    ],
)
def test_folders_of_hugging_face_name_their_task(tmp_path, architecture, expected):
    config = json.dumps({"architectures": [architecture]})
    (tmp_path / "config.json").write_text(config)
    assert export_saved_model.task_class(str(tmp_path)) is expected


def test_a_backbone_alone_is_one_line(tmp_path, capsys):
    folder = str(tmp_path / "backbone")
    DebertaBackbone(104, 1, 2, 8, 8).save_to_preset(folder)
    command = ["--preset", folder, "--output", str(tmp_path / "served")]
    with pytest.raises(SystemExit, match="2"):
        run_command(export_saved_model.main, command)
    assert "holds a backbone: nothing is served" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["DebertaMaskedLM", "DebertaReplacedTokenDetection"])
def test_a_task_with_nothing_to_serve_is_told_before_it_is_loaded(
    name, tmp_path, capsys
):
    # There are no weights to load.
    content = json.dumps({"registered_name": f"deberta_tf>{name}"})
    (tmp_path / "task.json").write_text(content)
    command = ["--preset", str(tmp_path), "--output", str(tmp_path / "served")]
    with pytest.raises(SystemExit, match="2"):
        run_command(export_saved_model.main, command)
    assert f"holds {name}: nothing is served" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed(preset, tmp_path):
    served = tmp_path / "served"
    for name in (".1.abcd_123", ".deployment.abcd_123"):
        (served / name / "variables").mkdir(parents=True)
    export_saved_model.main(["--preset", preset, "--output", str(served)])
    assert sorted(os.listdir(served)) == ["1", "deployment"]


@pytest.mark.slow
def test_an_export_that_fails_over_its_deployment_is_made_again(
    preset, tmp_path, monkeypatch
):
    served = tmp_path / "served"
    command = ["--preset", preset, "--output", str(served)]
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "write", _fill_the_disk)
        with pytest.raises(OSError, match="No space left"):
            export_saved_model.main(command)
    assert os.listdir(served) == []
    export_saved_model.main(command)
    assert sorted(os.listdir(served)) == ["1", "deployment"]


def _fill_the_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_existing_version_is_one_line(preset, tmp_path, capsys):
    output = str(tmp_path / "served")
    os.makedirs(os.path.join(output, "1"))
    with pytest.raises(SystemExit, match="2"):
        run_command(export_saved_model.main, ["--preset", preset, "--output", output])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "exists" in error


def test_a_missing_preset_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(
            export_saved_model.main, ["--preset", "nowhere", "--output", str(tmp_path)]
        )
    assert "--preset 'nowhere' is not a folder" in capsys.readouterr().err
