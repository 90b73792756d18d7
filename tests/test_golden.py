"""Parity with the official code and Hugging Face, on their tiny random models."""

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM

# Float32 differs from float64 of the same code by up to 4e-6 here; tanh-GELU in
# place of the exact one would show from 3e-4.
TOLERANCE = 2e-5
FORMS = ("gather", "shift")
COMPILED_FORMS = [pytest.param("gather", marks=pytest.mark.slow), "shift"]

# Case -> sets of inputs. Of "L40" the length is beyond max_relative_distance.
ENCODERS = {
    "A1_hf_v1_short": ["L17"],
    "A2_hf_v1_long": ["L16", "L40"],
    "A4_hf_v1_c2p": ["L15"],
    "B1_hf_v2_conv": ["L5", "L20", "L40"],
    "B2_hf_v2_conv_groups": ["L14"],
    "C1_hf_v3": ["L21", "L40"],
    "C2_hf_v3_unshared": ["L20"],
    "C3_hf_v3_c2p": ["L18"],
    "C4_hf_v3_p2c": ["L18"],
    "C5_hf_v3_none": ["L18"],
    "C6_hf_v3_abs_types": ["L22"],
    "C7_hf_v3_embsize": ["L19"],
    "C8_hf_v3_nobuckets": ["L16"],
    "C9_hf_v3_mask3d": ["causal", "random"],
    "C10_hf_bert_baseline": ["L14"],
}
DECODERS = (
    "D1_off_v3_mlm_emd",
    "D2_off_v1_mlm_emd",
    "D3_off_v3_mlm_noemd",
    "D4_off_v2conv_mlm_emd",
)
# One case a version under XLA in the default run, all of them when slow.
QUICK = ("A1_hf_v1_short", "B1_hf_v2_conv", "C1_hf_v3")


def xla_cases(cases):
    return [
        pytest.param(case, marks=() if case in QUICK else pytest.mark.slow)
        for case in cases
    ]


def read_inputs(folder, prefix, backbone):
    arrays = np.load(folder / "inputs.npz")
    arrays = {
        name.removeprefix(prefix): arrays[name]
        for name in arrays.files
        if name.startswith(prefix)
    }
    mask = arrays.get("attention_mask", arrays.get("input_mask"))
    inputs = {"token_ids": arrays["input_ids"], "padding_mask": mask}
    if backbone.num_segments:
        segments = np.zeros_like(arrays["input_ids"])
        inputs["segment_ids"] = arrays.get("token_type_ids", segments)
    inputs = {name: tf.constant(value, "int32") for name, value in inputs.items()}
    return inputs, arrays.get("embedding_mask", mask) > 0


def expected(folder, prefix, name):
    """The official value where both codes were run (SPEC 1.3)."""
    arrays = np.load(folder / "outputs.npz")
    official = f"{prefix}official.{name}"
    return arrays[official if official in arrays.files else prefix + name]


def check_encoder(folder, form, call):
    backbone = DebertaBackbone.from_preset(str(folder), attention_form=form)
    for name in ENCODERS[folder.name]:
        inputs, real = read_inputs(folder, f"{name}.", backbone)
        states = call(backbone)(inputs)
        target = expected(folder, f"{name}.", "last_hidden_state")
        assert np.abs(states - target)[real].max() <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_agree(golden, case, form):
    check_encoder(golden / "golden" / case, form, lambda backbone: backbone)


@pytest.mark.parametrize("form", COMPILED_FORMS)
@pytest.mark.parametrize("case", xla_cases(ENCODERS))
def test_encoders_agree_under_xla(golden, case, form):
    check_encoder(
        golden / "golden" / case,
        form,
        lambda backbone: tf.function(backbone, jit_compile=True),
    )


@pytest.mark.parametrize("case", ["A1_hf_v1_short", "B1_hf_v2_conv", "C1_hf_v3"])
def test_every_hidden_state_agrees(golden, case):
    folder = golden / "golden" / case
    backbone = DebertaBackbone.from_preset(str(folder))
    name = ENCODERS[case][-1 if case.startswith("A") else -2]
    inputs, real = read_inputs(folder, f"{name}.", backbone)
    states = backbone.hidden_states(inputs)
    targets = expected(folder, f"{name}.", "hidden_states")
    for state, target in zip(states, targets, strict=True):
        assert np.abs(state - target)[real].max() <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_attention_probabilities_agree(golden, form):
    folder = golden / "golden/A1_hf_v1_short"
    backbone = DebertaBackbone.from_preset(str(folder), attention_form=form)
    inputs, real = read_inputs(folder, "L17.", backbone)
    attention = backbone.encoder.blocks[0].attention
    pairs = real[:, :, None] & real[:, None, :]
    _, probabilities = attention(
        backbone.embeddings(inputs),
        relative_embeddings=backbone.encoder.relative_embeddings,
        attention_mask=tf.constant(pairs),
        return_attention_scores=True,
    )
    target = expected(folder, "L17.", "attentions")[0]
    rows = np.broadcast_to(real[:, None, :], probabilities.shape[:3])
    assert np.abs(probabilities - target)[rows].max() <= TOLERANCE


def test_unclamped_distances_agree_with_hugging_face_beyond_the_longest(golden):
    folder = golden / "golden/C1_hf_v3"
    backbone = DebertaBackbone.from_preset(str(folder), clamp_distances=False)
    inputs, real = read_inputs(folder, "L40.", backbone)
    target = np.load(folder / "outputs.npz")["L40.last_hidden_state"]
    assert np.abs(backbone(inputs) - target)[real].max() <= TOLERANCE
    clamped = DebertaBackbone.from_preset(str(folder))
    assert np.abs(clamped(inputs) - target)[real].max() > 1e-2


def test_talking_heads_are_refused_by_name(golden):
    with pytest.raises(ValueError, match="talking_head"):
        DebertaBackbone.from_preset(str(golden / "golden/A3_hf_v1_talking_head"))


def masked_positions(labels):
    """Positions of the labels, filled up with zeros, and where they are real."""
    count = (labels > 0).sum(1)
    real = np.arange(count.max() + 2) < count[:, None]
    positions = np.zeros(real.shape, "int32")
    positions[real] = np.nonzero(labels > 0)[1]
    return positions, real


def load_masked_lm(folder, form):
    masked_lm = DebertaMaskedLM.from_preset(str(folder))
    for block in masked_lm.backbone.encoder.blocks:
        block.attention.attention_form = form
    return masked_lm


def check_decoder(folder, form, call):
    masked_lm = load_masked_lm(folder, form)
    inputs, _ = read_inputs(folder, "", masked_lm.backbone)
    if "segment_ids" in inputs:
        # The official masked-LM model passes no segments on (SPEC 3.1).
        inputs["segment_ids"] *= 0
    labels = np.load(folder / "inputs.npz")["labels"]
    positions, real = masked_positions(labels)
    target = np.load(folder / "outputs.npz")["logits"]
    everywhere = call(masked_lm)(inputs)
    assert np.abs(everywhere[labels > 0] - target).max() <= TOLERANCE
    chosen = call(masked_lm)({**inputs, "mask_positions": tf.constant(positions)})
    assert np.abs(chosen[real] - target).max() <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DECODERS)
def test_masked_lms_agree_everywhere_and_at_masked_positions(golden, case, form):
    check_decoder(golden / "golden" / case, form, lambda masked_lm: masked_lm)


@pytest.mark.parametrize("form", COMPILED_FORMS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if "noemd" in case else ())
        for case in DECODERS
    ],
)
def test_masked_lms_agree_under_xla(golden, case, form):
    check_decoder(
        golden / "golden" / case,
        form,
        lambda masked_lm: tf.function(masked_lm, jit_compile=True),
    )


def masked_batch(folder, masked_lm):
    """(inputs, ids, weights) as `fit` takes them."""
    inputs, _ = read_inputs(folder, "", masked_lm.backbone)
    if "segment_ids" in inputs:
        # The official masked-LM model passes no segments on (SPEC 3.1).
        inputs["segment_ids"] *= 0
    labels = np.load(folder / "inputs.npz")["labels"]
    positions, real = masked_positions(labels)
    inputs["mask_positions"] = tf.constant(positions)
    return inputs, np.take_along_axis(labels, positions, 1), real.astype("float32")


@pytest.mark.parametrize("case", DECODERS)
def test_the_compiled_loss_is_the_official_one(golden, case):
    folder = golden / "golden" / case
    masked_lm = load_masked_lm(folder, "shift")
    inputs, ids, weights = masked_batch(folder, masked_lm)
    loss = masked_lm.test_on_batch(inputs, ids, weights)[0]
    assert abs(loss - np.load(folder / "outputs.npz")["loss"]) <= TOLERANCE


@pytest.mark.parametrize("case", DECODERS)
def test_gradients_of_the_loss_agree(golden, case):
    folder = golden / "golden" / case
    masked_lm = load_masked_lm(folder, "shift")
    inputs, ids, weights = masked_batch(folder, masked_lm)
    decoder = masked_lm.head.decoder
    embedding = decoder or masked_lm.backbone.embeddings
    table = embedding.position_embedding.embeddings
    with tf.GradientTape() as tape:
        loss = masked_lm.loss(ids, masked_lm(inputs), sample_weight=weights)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table.value))
    target = np.load(folder / "outputs.npz")["grad_position_embeddings"]
    np.testing.assert_allclose(gradient, target, rtol=1e-3, atol=1e-5)
