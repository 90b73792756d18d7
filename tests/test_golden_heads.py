"""Parity of the heads of tasks with the official code and Hugging Face."""

import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from tests.foreign_folders import read_folder, with_head
from tests.test_golden import FORMS, QUICK, TOLERANCE, read_inputs

# Case -> heads by the names of the golden files, after the set of inputs if any.
CASES = {
    "A1_hf_v1_short": [
        "L17.mlm",
        "L17.mlm_legacy",
        "L17.seqcls",
        "L17.tokcls",
        "L17.qa",
    ],
    "A2_hf_v1_long": ["L16.mlm", "L16.seqcls", "L16.tokcls", "L16.qa"],
    "B1_hf_v2_conv": [
        "L20.mlm",
        "L20.seqcls",
        "L20.tokcls",
        "L20.qa",
        "L20.multichoice",
    ],
    "C1_hf_v3": ["L21.mlm", "L21.seqcls", "L21.tokcls", "L21.qa", "L21.multichoice"],
    "C7_hf_v3_embsize": ["L19.mlm_legacy"],
    "C10_hf_bert_baseline": ["L14.seqcls"],
    "D6_off_heads": [
        "seqcls",
        "seqcls_soft",
        "regression",
        "multichoice",
        "ner",
        "record",
    ],
}
TASKS = {
    "mlm": deberta_tf.DebertaMaskedLM,
    "mlm_legacy": deberta_tf.DebertaMaskedLM,
    "seqcls": deberta_tf.DebertaTextClassifier,
    "seqcls_soft": deberta_tf.DebertaTextClassifier,
    "regression": deberta_tf.DebertaTextClassifier,
    "tokcls": deberta_tf.DebertaTokenClassifier,
    "ner": deberta_tf.DebertaTokenClassifier,
    "qa": deberta_tf.DebertaQuestionAnswering,
    "multichoice": deberta_tf.DebertaMultipleChoice,
    "record": deberta_tf.DebertaEntityScorer,
}
# Their logits of padding are of no meaning.
OF_TOKENS = ("mlm", "mlm_legacy", "tokcls", "ner", "qa")
FLAT = [(case, name) for case, names in CASES.items() for name in names]
# Hugging Face decodes the last state: a table of absolute positions isn't there.
without_decoder = pytest.mark.filterwarnings(
    "ignore:The checkpoint has a masked-LM head, and no absolute positions:UserWarning"
)


def load(golden, tmp_path, case, head, form):
    source = golden / "golden" / case
    folder = source
    if (source / f"head_{head}.safetensors").exists():
        folder = tmp_path / "with_head"
        with_head(source, folder, head)
    task = TASKS[head].from_preset(str(folder))
    for block in task.backbone.encoder.blocks:
        block.attention.attention_form = form
    return task


def head_inputs(source, name, task):
    """(inputs, which of the logits count) of one head."""
    *prefix, head = name.split(".")
    prefix = "".join(f"{part}." for part in prefix)
    if head == "multichoice":
        prefix += "mc."
    inputs, real = read_inputs(source, prefix, task.backbone)
    if head == "record":
        arrays = np.load(source / "inputs.npz")
        inputs["entity_positions"] = tf.constant(arrays["record.entity_indice"])
    return inputs, real if head in OF_TOKENS else slice(None)


def target(source, name):
    arrays = np.load(source / "outputs.npz")
    if name.endswith("qa"):
        spans = [arrays[f"{name}.{end}_logits"] for end in ("start", "end")]
        return np.stack(spans, axis=-1)
    return arrays[f"{name}.logits"]


def check_head(golden, tmp_path, case, name, form, call):
    source = golden / "golden" / case
    task = load(golden, tmp_path, case, name.split(".")[-1], form)
    inputs, counts = head_inputs(source, name, task)
    expected = target(source, name)
    logits = tf.reshape(call(task)(inputs), expected.shape)
    assert np.abs(logits - expected)[counts].max() <= TOLERANCE


@without_decoder
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "name"), FLAT)
def test_heads_agree(golden, tmp_path, case, name, form):
    check_head(golden, tmp_path, case, name, form, lambda task: task)


@without_decoder
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "name"), FLAT)
def test_heads_agree_under_xla(golden, tmp_path, case, name, form):
    check_head(
        golden,
        tmp_path,
        case,
        name,
        form,
        lambda task: tf.function(task, jit_compile=True),
    )


@without_decoder
@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case, name in FLAT if case in QUICK]
)
def test_heads_come_back_to_hugging_face_bit_for_bit(golden, tmp_path, case, name):
    task = load(golden, tmp_path, case, name.split(".")[-1], "shift")
    task.save_to_huggingface(str(tmp_path / "back"))
    _, after = read_folder(tmp_path / "back")
    folder = tmp_path / "with_head"
    _, before = read_folder(folder if folder.exists() else golden / "golden" / case)
    if name.endswith("legacy"):
        # The newer spelling, where the width allows it.
        before = {standard_name(key): value for key, value in before.items()}
    assert after.keys() == before.keys()
    for key, value in after.items():
        assert value.tobytes() == before[key].tobytes(), key


def standard_name(key):
    key = key.replace("cls.predictions.transform.", "lm_predictions.lm_head.")
    return key.replace("cls.predictions.", "lm_predictions.lm_head.")
