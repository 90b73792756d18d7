"""Mistakes in fine-tuning: one line each, before any work."""

import re

import pytest

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from tests.finetuning import (
    build_task,
    config_of,
    flags,
    prepared,
    save_preset,
    write_csv,
    write_data,
)
from trainers import finetune
from trainers.config import field_help
from trainers.finetune_config import FinetuneConfig


@pytest.fixture(scope="module")
def preset(tmp_path_factory, sentencepiece_proto):
    folder = str(tmp_path_factory.mktemp("pretrained") / "preset")
    return save_preset(folder, sentencepiece_proto)


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    return write_data(tmp_path_factory.mktemp("labelled"), sentences)


def test_weights_of_another_vocabulary_are_refused(preset, data, tmp_path):
    backbone = DebertaBackbone(1200, 1, 2, 8, 8, bucket_size=8)
    backbone.save_to_preset(str(tmp_path / "large"))
    settings = {"tokenizer": preset}
    config = config_of(tmp_path / "large", data, **settings)
    with pytest.raises(files.UsageError, match="1,200 rows: they are not of one"):
        build_task(config)
    fresh = config_of(tmp_path / "large", data, **settings, load_weights="false")
    assert build_task(fresh).num_classes == 2


def test_every_setting_has_its_help():
    config = FinetuneConfig
    assert set(field_help(config)) == set(config.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "no.csv"}, "no file 'no.csv'"),
        ({"preset": "no/where"}, "No preset 'no/where'"),
        ({"preset": "bert_base"}, "is a geometry, without published weights"),
        ({"preset": "deberta_v3_base"}, "'hf://microsoft/.*' has no config.json: .+"),
        ({"text_columns": "text"}, "has no column 'text'; found: 'sentence'"),
        ({"text_columns": "a,b,c"}, "text_columns must be one name, or two"),
        ({"label_column": "y"}, "has no column 'y'; .* Name it with --label_column"),
        ({"labels": "yes,maybe"}, "has label 'no' in row .* 'yes', 'maybe'"),
        ({"labels": "yes"}, "labels must be two or more different names"),
        ({"sequence_length": 2}, "sequence_length must be at least 3"),
        ({"regression": "true"}, "has label '(yes|no)' in row 1; a regression needs"),
        (
            {"best_by": "f1"},
            "best_by must be one of accuracy, macro_f1, matthews, mean",
        ),
        ({"task": "mnl"}, "no task 'mnl'; there are 'mnli'"),
        (
            {"task": "rte", "text_columns": "text"},
            "text_columns is for texts of yours, without --task",
        ),
        ({"data_dir": "glue"}, "data_dir is nothing without --task"),
        ({"train": None}, "--train is missing: name a file, or a --task"),
        ({"recipe": "off"}, "recipe is nothing without --task"),
        ({"task": "rte", "labels": "a,b"}, "can't be declared: rte has its own"),
        (
            {"task": "squad2", "sequence_length": 4},
            "sequence_length must be at least 5",
        ),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"warmup_fraction": 1}, r"warmup_fraction must be in \[0, 1\)"),
        ({"sift_weight": 3}, "sift_weight is nothing without --sift"),
        ({"sift": "true", "sift_weight": 0}, "sift_weight must be above 0"),
        ({"layer_decay": 0}, "layer_decay must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be at most 1"),
        ({"frozen_layers": 9}, r"num_blocks must be in \[0, 1\]. Received: 9"),
        ({"batchsize": 1}, "--batchsize; did you mean 'batch_size'"),
    ],
)
def test_mistakes_are_one_line(preset, data, tmp_path, capsys, settings, message):
    settings = {"preset": preset, **settings}
    command = flags(data=data, model_dir=tmp_path / "model", **settings)
    with pytest.raises(SystemExit, match="2"):
        files.run_command(finetune.main, command)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "model").exists()


def test_more_tokens_than_absolute_positions_are_refused(data, tmp_path, preset):
    backbone = DebertaBackbone(
        101,
        1,
        2,
        16,
        32,
        position_terms=(),
        absolute_position_input=True,
        bucket_size=8,
        max_sequence_length=16,
    )
    tokenizer = finetune.vocabulary.load_tokenizer(config_of(preset, data))
    folder = str(tmp_path / "preset")
    task = DebertaMaskedLM(backbone, DebertaMaskedLMPreprocessor(tokenizer, 16))
    task.save_to_preset(folder)
    with pytest.raises(ValueError, match="max_sequence_length=16, a sequence of 24"):
        build_task(config_of(folder, data))


def test_a_vocabulary_larger_than_the_table_is_refused(data, tmp_path, preset):
    folder = str(tmp_path / "preset")
    DebertaBackbone(50, 1, 2, 16, 32).save_to_preset(folder)
    config = config_of(folder, data, tokenizer=preset)
    with pytest.raises(ValueError, match="a tokenizer of 101, vocabulary_size=50"):
        build_task(config)


def test_one_class_alone_is_refused(preset, data, tmp_path):
    path = tmp_path / "train.csv"
    write_csv(path, [("sentence", "label"), ("a", "yes"), ("b", "yes")])
    config = config_of(preset, data, train=path)
    with pytest.raises(files.UsageError, match="has the one label 'yes'"):
        prepared(config)
