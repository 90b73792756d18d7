"""Parity of generator and discriminator with the official code (golden D5)."""

import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from deberta_tf.checkpoints import names
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.replaced_token import DebertaReplacedTokenDetection
from deberta_tf.replaced_token_training import discriminator_loss
from deberta_tf.tasks import DebertaTextClassifier
from tests.foreign_folders import read_folder, write_folder
from tests.test_golden import FORMS, TOLERANCE, masked_positions

# A discriminator's head has no class there.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Hugging Face's library has no class with this head:UserWarning"
)

# Ours -> official.
SHARINGS = {"gdes": "gdes", "es": "es", "nes": "none"}
POSITIONS = "deberta.embeddings.position_embeddings."
DELTA = "deberta.embeddings.word_embeddings._weight"


@pytest.fixture
def official(golden):
    return golden / "golden/D5_off_rtd"


def load(folder, sharing, form="shift"):
    detection = DebertaReplacedTokenDetection.from_preset(
        str(folder), embedding_sharing=sharing
    )
    for backbone in (detection.backbone, detection.generator.backbone):
        for block in backbone.encoder.blocks:
            block.attention.attention_form = form
    return detection


def batch(folder):
    """(inputs, where an entry of mask_positions counts, where tokens are)."""
    arrays = np.load(folder / "inputs.npz")
    positions, counts = masked_positions(arrays["labels"])
    replaced = np.zeros_like(positions)
    replaced[counts] = arrays["replaced_ids"]
    inputs = {
        "token_ids": arrays["input_ids"],
        "padding_mask": arrays["input_mask"],
        "mask_positions": positions,
        "replaced_ids": replaced,
    }
    inputs = {name: tf.constant(value, "int32") for name, value in inputs.items()}
    return inputs, counts, arrays["input_mask"] > 0


def check_networks(
    folder, source, sharing, form="shift", call=lambda detection: detection
):
    outputs = np.load(source / "outputs.npz")
    inputs, counts, real = batch(source)
    found = call(load(folder, sharing, form))(inputs)
    np.testing.assert_array_equal(found["token_ids"], outputs["gdes.disc_input_ids"])
    generated = found["generator_logits"][counts]
    assert np.abs(generated - outputs["gdes.mlm_logits"]).max() <= TOLERANCE
    expected = outputs[f"{SHARINGS[sharing]}.disc_logits"]
    assert np.abs(found["logits"] - expected)[real].max() <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_generator_and_discriminator_agree(official, sharing, form):
    check_networks(official, official, sharing, form)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_generator_and_discriminator_agree_under_xla(official, sharing):
    check_networks(
        official,
        official,
        sharing,
        call=lambda detection: tf.function(detection, jit_compile=True),
    )


def test_the_config_tells_how_the_table_is_shared(official, tmp_path):
    config, tensors = read_folder(official)
    for ours, theirs in SHARINGS.items():
        folder = tmp_path / ours
        write_folder(folder, {**config, "embedding_sharing": theirs}, tensors)
        detection = DebertaReplacedTokenDetection.from_preset(str(folder))
        assert detection.embedding_sharing == ours


def test_the_delta_is_the_one_of_the_file(official):
    _, tensors = read_folder(official)
    delta = load(official, "gdes").shared_embeddings.embedding_delta
    np.testing.assert_array_equal(delta, tensors[f"discriminator.{DELTA}"])


def without(tensors, ending):
    return {k: v for k, v in tensors.items() if not k.endswith(ending)}


@pytest.mark.parametrize("ending", ["_weight", "word_embeddings.weight"])
def test_sum_or_delta_alone_will_do(official, tmp_path, ending):
    config, tensors = read_folder(official)
    kept = without(tensors, f"discriminator.{DELTA}")
    if ending != "_weight":
        table = "discriminator.deberta.embeddings.word_embeddings.weight"
        kept = without(tensors, table)
    folder = tmp_path / "part"
    write_folder(folder, config, kept)
    check_networks(folder, official, "gdes")


@pytest.mark.parametrize("sharing", ["gdes", "nes"])
def test_both_networks_come_back_bit_for_bit(official, tmp_path, sharing):
    load(official, sharing).save_to_huggingface(str(tmp_path / "back"))
    before = read_folder(official)[1]
    files = {"discriminator.": "model", "generator.": "model.generator"}
    after = {}
    for prefix, name in files.items():
        path = tmp_path / f"back/{name}.safetensors"
        tensors = safetensors.numpy.load_file(path)
        after |= {f"{prefix}{key}": value for key, value in tensors.items()}
    # Microsoft's own discriminator does not use its positions; the delta is the
    # difference of the two tables.
    left_out = {
        f"discriminator.{name}"
        for name in (DELTA, f"{POSITIONS}weight", f"{POSITIONS}_weight")
    }
    assert before.keys() - after.keys() == left_out
    for name, value in after.items():
        assert value.tobytes() == before[name].tobytes(), name
    check_networks(tmp_path / "back", official, sharing)


def published(official, folder):
    """The layout of the published v3 folders: a discriminator, a generator beside."""
    config, tensors = read_folder(official)
    own = {
        role: {
            k.removeprefix(f"{role}."): v
            for k, v in tensors.items()
            if k.startswith(f"{role}.") and not k.endswith("_weight")
        }
        for role in ("generator", "discriminator")
    }
    write_folder(folder, config["discriminator"], own["discriminator"])
    safetensors.numpy.save_file(
        own["generator"], folder / "model.generator.safetensors"
    )
    return folder


def test_the_published_layout_is_read(official, tmp_path):
    folder = published(official, tmp_path / "published")
    check_networks(folder, official, "gdes")
    config, _ = read_folder(official)
    generator = load(folder, "gdes").generator.backbone
    assert generator.num_layers == config["generator"]["num_hidden_layers"]


def test_the_delta_of_published_networks_is_their_difference(official, tmp_path):
    folder = published(official, tmp_path / "published")
    detection = load(folder, "gdes")
    _, tensors = read_folder(official)
    delta = tensors[f"discriminator.{DELTA}"]
    found = detection.shared_embeddings.embedding_delta
    # Float32: a sum was rounded in between.
    np.testing.assert_allclose(found, delta, atol=1e-6)
    # The table itself stays as it was published.
    detection.save_to_huggingface(str(tmp_path / "back"))
    name = "deberta.embeddings.word_embeddings.weight"
    before, after = read_folder(folder)[1], read_folder(tmp_path / "back")[1]
    assert after[name].tobytes() == before[name].tobytes()


def test_masks_are_filled_by_the_generator(official, tmp_path):
    folder = published(official, tmp_path / "published")
    generator = DebertaMaskedLM.from_preset(str(folder), generator=True)
    outputs = np.load(official / "outputs.npz")
    inputs, counts, _ = batch(official)
    del inputs["replaced_ids"]
    logits = generator(inputs)[counts]
    assert np.abs(logits - outputs["gdes.mlm_logits"]).max() <= TOLERANCE
    with (
        pytest.warns(UserWarning, match="not trained to fill masks.*generator=True"),
        pytest.warns(UserWarning, match="lm_predictions are fresh"),
    ):
        DebertaMaskedLM.from_preset(str(folder))


def test_a_discriminator_alone_gets_a_fresh_generator_and_says_so(official, tmp_path):
    folder = published(official, tmp_path / "published")
    (folder / "model.generator.safetensors").unlink()
    with pytest.warns(UserWarning, match="no generator: it is fresh"):
        detection = load(folder, "nes")
    assert detection.generator.backbone.num_layers == 1
    table = detection.backbone.token_embedding.embeddings
    _, tensors = read_folder(folder)
    name = "deberta.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(table, tensors[name])


def test_other_tasks_take_the_discriminators_encoder(official, tmp_path):
    with pytest.warns(UserWarning, match="pooler, classifier are fresh"):
        classifier = DebertaTextClassifier.from_preset(str(official), num_classes=2)
    table = classifier.backbone.token_embedding.embeddings
    _, tensors = read_folder(official)
    name = "discriminator.deberta.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(table, tensors[name])


def test_a_missing_network_is_named(official, tmp_path):
    config, tensors = read_folder(official)
    folder = tmp_path / "half"
    own = {k: v for k, v in tensors.items() if k.startswith("generator.")}
    write_folder(folder, config, own)
    with pytest.raises(ValueError, match="no tensors of its discriminator"):
        DebertaReplacedTokenDetection.from_preset(str(folder))


def test_an_official_file_of_torch_holds_both_networks(official, tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(official / name, tmp_path)
    check_networks(tmp_path, official, "gdes")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "sharing",
    [
        pytest.param(sharing, marks=() if sharing == "gdes" else pytest.mark.slow)
        for sharing in SHARINGS
    ],
)
def test_half_precision_runs_and_is_saved(official, tmp_path, sharing, dtype):
    detection = DebertaReplacedTokenDetection.from_preset(
        str(official), embedding_sharing=sharing, dtype=dtype
    )
    inputs, _, real = batch(official)
    expected = np.load(official / "outputs.npz")[f"{SHARINGS[sharing]}.disc_logits"]
    logits = detection(inputs)["logits"]
    # bfloat16 keeps 8 bits of logits of about one.
    assert np.abs(logits - expected)[real].max() <= 0.1
    detection.save_to_preset(str(tmp_path / "preset"))
    again = DebertaReplacedTokenDetection.from_preset(
        str(tmp_path / "preset"), dtype=dtype
    )
    np.testing.assert_array_equal(again(inputs)["logits"], logits)


def test_the_depth_of_a_generator_is_half_where_nothing_tells_it():
    arguments = {"load_weights": False, "generator": True, "dtype": "float16"}
    generator = DebertaMaskedLM.from_preset("deberta_v3_xsmall", **arguments)
    assert generator.backbone.num_layers == 6


def training_batch(folder):
    """What `fit` takes, and the tokens that the official run drew."""
    inputs, counts, _ = batch(folder)
    labels = np.load(folder / "inputs.npz")["labels"]
    positions = inputs["mask_positions"].numpy()
    mask_ids = np.take_along_axis(labels, positions, 1) * counts
    drawn = inputs.pop("replaced_ids")
    data = (inputs, tf.constant(mask_ids, "int32"), tf.constant(counts, "float32"))
    return data, drawn


def losses(detection, data, drawn):
    """(generator's, discriminator's), each a mean."""
    found = detection.generate(data, seed=(0, 0), training=True)
    errors, tokens = discriminator_loss(*detection.detect(data, drawn, training=True))
    return found.loss / tf.reduce_sum(data[2]), errors / tokens


def official_names(detection):
    """The official name of each trainable variable, by its id."""
    found = {}
    own = [*detection.backbone.trainable_variables, *detection.head.weights]
    for role, variables in (
        ("generator", detection.generator.trainable_variables),
        ("discriminator", own),
    ):
        for variable in variables:
            found[id(variable)] = f"{role}.{names.their_name(variable.path)}"
    for variable in detection.shared_embeddings.trainable_variables:
        if "embedding_delta" in variable.path:
            found[id(variable)] = f"discriminator.{DELTA}".replace(".deberta.", ".")
    return found


@pytest.fixture
def without_dropout(monkeypatch):
    monkeypatch.setattr("deberta_tf.dropout.Dropout.call", lambda _, x, **kwargs: x)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_losses_and_their_gradients_agree(official, sharing, without_dropout):
    outputs, theirs = np.load(official / "outputs.npz"), SHARINGS[sharing]
    detection = load(official, sharing)
    data, drawn = training_batch(official)
    with tf.GradientTape(persistent=True) as tape:
        found = dict(zip(("mlm", "rtd"), losses(detection, data, drawn), strict=True))
        found["total"] = found["mlm"] + 10.0 * found["rtd"]
    variables = detection.trainable_variables
    official_name = official_names(detection)
    for kind, loss in found.items():
        expected = outputs[f"{theirs}.{kind}_loss"]
        np.testing.assert_allclose(loss, expected, atol=TOLERANCE, rtol=1e-5)
        norms = outputs[f"{theirs}.grad_{kind}.norms"]
        keys = [str(name) for name in outputs[f"{theirs}.grad_{kind}.names"]]
        keys = [name.replace(".deberta.", ".") for name in keys]
        expected = dict(zip(keys, norms, strict=True))
        gradients = tape.gradient(loss, [v.value for v in variables])
        for variable, gradient in zip(variables, gradients, strict=True):
            name = official_name[id(variable)]
            norm = 0.0
            if gradient is not None:
                norm = np.linalg.norm(tf.convert_to_tensor(gradient))
            wanted = expected.pop(name)
            assert (norm > 0) == (wanted > 0) or max(norm, wanted) < 1e-6, name
            np.testing.assert_allclose(norm, wanted, atol=1e-5, rtol=1e-4, err_msg=name)
        # What is no parameter here gets no gradient there.
        assert {name for name, norm in expected.items() if norm > 0} == set()


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_step_reports_the_official_losses(official, jit_compile, without_dropout):
    detection = load(official, "gdes")
    data, drawn = training_batch(official)
    still = [keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)]
    detection.compile(*still, discriminator_weight=10.0, jit_compile=jit_compile)
    detection.sample = lambda logits, seed: drawn
    history = detection.fit(tf.data.Dataset.from_tensors(data), verbose=0).history
    outputs = np.load(official / "outputs.npz")
    expected = {
        "generator_loss": outputs["gdes.mlm_loss"],
        "discriminator_loss": outputs["gdes.rtd_loss"],
        "loss": outputs["gdes.total_loss"],
        "replaced_rate": outputs["gdes.rtd_labels"].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(history[name][0], value, atol=TOLERANCE, rtol=1e-5)
