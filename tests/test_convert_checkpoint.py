import re

import keras_hub
import numpy as np
import pytest
import safetensors.numpy

import deberta_tf
from tests.foreign_folders import read_folder, with_head, write_folder
from tests.small_models import make_backbone, randomize
from tools import convert_checkpoint
from tools.convert_checkpoint import TASKS, find_task


def convert(source, to, output, *more):
    convert_checkpoint.main(
        ["--input", str(source), "--to", to, "--output", str(output), *more]
    )
    return output


@pytest.fixture
def official(golden):
    return golden / "golden/D1_off_v3_mlm_emd"


def test_there_and_back_is_bit_identical(official, tmp_path, capsys):
    preset = convert(official, "preset", tmp_path / "preset")
    assert re.search(
        r"wrote .*preset: masked_lm, 0\.000 GB of weights in [\d.]+ s \([\d.]+ s/GB\)",
        capsys.readouterr().out,
    )
    back = convert(preset, "huggingface", tmp_path / "back")
    before, after = read_folder(official)[1], read_folder(back)[1]
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.tobytes() == before[name].tobytes(), name


def test_half_precision_stays_half(official, tmp_path):
    config, tensors = read_folder(official)
    halves = {name: value.astype("float16") for name, value in tensors.items()}
    write_folder(tmp_path / "half", config, halves)
    preset = convert(tmp_path / "half", "preset", tmp_path / "p", "--dtype", "float16")
    masked_lm = deberta_tf.DebertaMaskedLM.from_preset(str(preset), dtype="float16")
    assert masked_lm.head.dense.kernel.dtype == "float16"
    back = convert(preset, "huggingface", tmp_path / "back", "--dtype", "float16")
    for name, value in read_folder(back)[1].items():
        assert value.tobytes() == halves[name].tobytes(), name


@pytest.mark.parametrize("task", ["backbone", "masked_lm", "question_answering"])
def test_tokenizers_go_along(tmp_path, sentencepiece_proto, task):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    model = make_backbone() if task == "backbone" else TASKS[task](make_backbone())
    model.save_to_huggingface(str(tmp_path / "hf"), tokenizer=tokenizer)
    preset = convert(tmp_path / "hf", "preset", tmp_path / "preset")
    back = convert(preset, "huggingface", tmp_path / "back")
    assert (back / "spm.model").read_bytes() == sentencepiece_proto


def test_keras_hub_reads_what_is_converted_for_it(tmp_path, sentencepiece_proto):
    backbone = make_backbone()
    randomize(backbone)
    backbone.save_to_huggingface(
        str(tmp_path / "hf"),
        tokenizer=deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto),
    )
    hub = convert(tmp_path / "hf", "keras_hub", tmp_path / "hub")
    model = keras_hub.models.DebertaV3Backbone.from_preset(str(hub))
    ids = np.arange(5, 17, dtype="int32")[None]
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    np.testing.assert_allclose(model(inputs), backbone(inputs), atol=2e-5)
    back = convert(hub, "huggingface", tmp_path / "back")
    for name, value in read_folder(back)[1].items():
        assert value.tobytes() == read_folder(tmp_path / "hf")[1][name].tobytes()


def test_the_head_that_keras_hub_has_not_is_told(tmp_path, capsys):
    classifier = deberta_tf.DebertaTextClassifier(make_backbone(), 2)
    classifier.save_to_preset(str(tmp_path / "preset"))
    convert(tmp_path / "preset", "keras_hub", tmp_path / "hub")
    assert "head of the text_classifier is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "head", "task"),
    [
        ("D1_off_v3_mlm_emd", None, "masked_lm"),
        ("D5_off_rtd", None, "replaced_token"),
        ("D6_off_heads", None, "text_classifier"),
        ("D6_off_heads", "ner", "token_classifier"),
        ("D6_off_heads", "record", "entity_scorer"),
        ("C1_hf_v3", "tokcls", "token_classifier"),
        ("C1_hf_v3", "qa", "question_answering"),
        ("C3_hf_v3_c2p", None, "backbone"),
    ],
)
def test_what_a_folder_holds_is_told_by_its_tensors(golden, tmp_path, case, head, task):
    folder = golden / "golden" / case
    if head is not None:
        with_head(folder, tmp_path / "head", head)
        folder = tmp_path / "head"
    assert find_task(str(folder)) == task


@pytest.mark.parametrize("task", ["multiple_choice", "question_answering"])
def test_what_a_folder_holds_is_told_by_its_config(tmp_path, task):
    model = TASKS[task](make_backbone())
    model.save_to_huggingface(str(tmp_path / "hf"))
    assert find_task(str(tmp_path / "hf")) == task
    model.save_to_preset(str(tmp_path / "preset"))
    assert find_task(str(tmp_path / "preset")) == task


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere", "--output", "x", "--to", "preset"], "'nowhere'"),
        (
            ["--input", "x", "--output", "hf://a/b", "--to", "preset"],
            "must be a local folder",
        ),
        (["--input", "x", "--output", "x", "--to", "preset"], "another folder"),
        (
            "--input x --output y --to keras_hub --dtype float16".split(),
            "--to keras_hub, which is float32",
        ),
    ],
)
def test_mistakes_are_told_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint.main(arguments)


@pytest.mark.filterwarnings(
    "ignore:Hugging Face's library has no class with this head:UserWarning"
)
def test_generator_and_discriminator_go_there_and_back(golden, tmp_path):
    source = golden / "golden/D5_off_rtd"
    preset = convert(source, "preset", tmp_path / "preset")
    back = convert(preset, "huggingface", tmp_path / "back")
    assert find_task(str(back)) == "replaced_token"
    before = read_folder(source)[1]
    for role, file in (("discriminator", "model"), ("generator", "model.generator")):
        after = safetensors.numpy.load_file(back / f"{file}.safetensors")
        assert len(after) > 20
        for name, value in after.items():
            assert value.tobytes() == before[f"{role}.{name}"].tobytes(), name
