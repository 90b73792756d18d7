import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.replaced_token import (
    EMBEDDING_SHARINGS,
    DebertaReplacedTokenDetection,
)
from deberta_tf.replaced_token_training import replace_tokens
from deberta_tf.tasks import DebertaTextClassifier
from tests.small_models import make_backbone, randomize

MASK_ID = 103
NAMES = ("token_ids", "mask_positions", "replaced_ids")


def make_generator(**kwargs):
    return DebertaMaskedLM(make_backbone(**{"num_layers": 1, **kwargs}))


def make_detection(embedding_sharing="gdes", dtype=None, num_tokens=None, **kwargs):
    detection = DebertaReplacedTokenDetection(
        make_backbone(dtype=dtype, **kwargs),
        make_generator(dtype=dtype),
        embedding_sharing,
        num_tokens,
    )
    randomize(detection)
    return detection


def make_inputs():
    """Three rows, the last one padded; two masks each, and an unused entry."""
    token_ids = np.random.default_rng(0).integers(5, 100, (3, 9))
    mask_positions = np.array([[2, 5, 0], [8, 1, 0], [3, 4, 0]])
    token_ids[:, 0] = 1
    for row, positions in zip(token_ids, mask_positions, strict=True):
        row[positions[:2]] = MASK_ID
    padding_mask = np.ones((3, 9))
    padding_mask[2, 6:] = 0
    inputs = {
        "token_ids": token_ids,
        "padding_mask": padding_mask,
        "mask_positions": mask_positions,
        "replaced_ids": np.array([[11, 12, 99], [13, 14, 99], [15, 16, 99]]),
    }
    return {name: tf.constant(value, "int32") for name, value in inputs.items()}


def assert_same_outputs(outputs, expected, tolerance):
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_tokens_are_put_where_they_belong(jit_compile):
    inputs = make_inputs()
    expected = inputs["token_ids"].numpy()
    for row, positions, ids in zip(
        expected, inputs["mask_positions"], inputs["replaced_ids"], strict=True
    ):
        row[positions[:2]] = ids[:2]
    replace = tf.function(replace_tokens, jit_compile=jit_compile)
    replaced = replace(
        inputs["token_ids"], inputs["mask_positions"], inputs["replaced_ids"]
    )
    assert replaced.dtype == "int32"
    np.testing.assert_array_equal(replaced, expected)


def test_unused_entries_replace_nothing():
    token_ids = make_inputs()["token_ids"]
    unused = np.zeros((3, 2), "int64")
    np.testing.assert_array_equal(replace_tokens(token_ids, unused, unused), token_ids)


def test_the_generator_reads_masks_and_the_discriminator_what_stands_there():
    detection, inputs = make_detection(), make_inputs()
    outputs = detection(inputs)
    masked = {name: inputs[name] for name in detection.generator.input}
    np.testing.assert_array_equal(
        outputs["generator_logits"], detection.generator(masked)
    )
    corrupted = {**masked, "token_ids": outputs["token_ids"]}
    assert not np.any(outputs["token_ids"] == MASK_ID)
    np.testing.assert_array_equal(outputs["logits"], detection.discriminate(corrupted))


def table_by_hand(detection):
    shared = detection.generator.backbone.token_embedding.embeddings.numpy()
    if detection.embedding_sharing == "nes":
        return detection.backbone.token_embedding.embeddings.numpy()
    if detection.embedding_sharing == "es":
        return shared
    return shared + detection.shared_embeddings.embedding_delta.numpy()


@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_the_discriminator_looks_tokens_up_in_the_table_of_its_sharing(
    embedding_sharing,
):
    detection, inputs = make_detection(embedding_sharing), make_inputs()
    outputs = detection(inputs)
    plain = make_backbone()
    plain.set_weights(detection.backbone.get_weights())
    plain.token_embedding.embeddings.assign(table_by_hand(detection))
    corrupted = {**inputs, "token_ids": outputs["token_ids"]}
    states = plain.hidden_states(corrupted)
    expected = detection.head(states, corrupted)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    detection.materialize()
    np.testing.assert_array_equal(
        detection.backbone.token_embedding.embeddings, table_by_hand(detection)
    )
    np.testing.assert_array_equal(detection(inputs)["logits"], outputs["logits"])


def test_the_delta_starts_at_zero():
    detection = DebertaReplacedTokenDetection(make_backbone(), make_generator())
    assert not np.any(detection.shared_embeddings.embedding_delta)


@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_gradients_of_the_discriminator_go_where_its_table_comes_from(
    embedding_sharing,
):
    detection, inputs = make_detection(embedding_sharing), make_inputs()
    variables = detection.trainable_variables
    with tf.GradientTape() as tape:
        logits = detection(inputs, training=True)["logits"]
        loss = tf.reduce_sum(logits * tf.random.normal(logits.shape))
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    reached = {
        id(variable)
        for variable, gradient in zip(variables, gradients, strict=True)
        if gradient is not None and np.any(tf.convert_to_tensor(gradient))
    }
    generator = detection.generator.trainable_variables
    table = detection.generator.backbone.token_embedding.embeddings
    from_generator = {id(table)} if embedding_sharing == "es" else set()
    assert {id(v) for v in generator} & reached == from_generator
    ours = [v for v in variables if not any(v is other for other in generator)]
    unreached = [v.path for v in ours if id(v) not in reached]
    assert unreached == []
    own = detection.backbone.token_embedding.embeddings
    assert (id(own) in reached) == (embedding_sharing == "nes")
    if embedding_sharing == "gdes":
        assert id(detection.shared_embeddings.embedding_delta) in reached


@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_only_a_table_in_use_is_trained(embedding_sharing):
    detection = make_detection(embedding_sharing)
    own = detection.backbone.token_embedding.embeddings
    trained = any(own is variable for variable in detection.trainable_variables)
    assert trained == (embedding_sharing == "nes")


def test_the_generators_loss_trains_no_part_of_the_discriminator():
    detection, inputs = make_detection(), make_inputs()
    discriminator = [
        *detection.backbone.trainable_variables,
        *detection.head.trainable_variables,
        detection.shared_embeddings.embedding_delta,
    ]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(detection(inputs)["generator_logits"] ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in discriminator])
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_xla_computes_what_eager_execution_computes(embedding_sharing):
    detection, inputs = make_detection(embedding_sharing), make_inputs()
    compiled = tf.function(lambda x: detection(x, training=True), jit_compile=True)
    # XLA fuses and reorders float32 sums.
    assert_same_outputs(compiled(inputs), detection(inputs), 2e-5)


def test_bfloat16_stays_close_and_returns_float32():
    exact, half = make_detection(), make_detection(dtype="mixed_bfloat16")
    half.set_weights(exact.get_weights())
    inputs = make_inputs()
    outputs, expected = half(inputs), exact(inputs)
    assert outputs["logits"].dtype == outputs["generator_logits"].dtype == "float32"
    scale = np.abs(expected["logits"]).max()
    # bfloat16 keeps 8 bits, through two blocks.
    assert np.abs(outputs["logits"] - expected["logits"]).max() < 0.1 * scale


def test_the_sum_of_two_tables_is_rounded_once():
    detection, inputs = make_detection(dtype="mixed_bfloat16"), make_inputs()
    embedded = detection.shared_embeddings(inputs)
    detection.materialize()
    assert embedded.dtype == "bfloat16"
    np.testing.assert_array_equal(embedded, detection.backbone.embeddings(inputs))


def test_a_preset_loads_both_networks_in_the_dtype_asked_for(tmp_path):
    make_detection().save_to_preset(str(tmp_path / "preset"))
    loaded = DebertaReplacedTokenDetection.from_preset(
        str(tmp_path / "preset"), dtype="mixed_bfloat16"
    )
    networks = loaded.backbone, loaded.generator.backbone
    assert {network.dtype_policy.name for network in networks} == {"mixed_bfloat16"}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_a_preset_comes_back_with_both_networks(tmp_path, embedding_sharing, policy):
    detection, inputs = make_detection(embedding_sharing, policy), make_inputs()
    expected = detection(inputs)
    detection.save_to_preset(str(tmp_path / "preset"))
    loaded = DebertaReplacedTokenDetection.from_preset(
        str(tmp_path / "preset"), dtype=policy
    )
    assert loaded.embedding_sharing == embedding_sharing
    assert loaded.generator.backbone.dtype_policy.name == policy
    assert len(loaded.weights) == len(detection.weights)
    for ours, theirs in zip(loaded.weights, detection.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert_same_outputs(loaded(inputs), expected, 0.0)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_a_keras_file_comes_back_whole(tmp_path, embedding_sharing, policy):
    detection, inputs = make_detection(embedding_sharing, policy), make_inputs()
    detection.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(loaded.weights, detection.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert_same_outputs(loaded(inputs), detection(inputs), 0.0)


def test_a_generator_that_was_trained_before_leaves_its_optimizer_behind(tmp_path):
    generator, inputs = make_generator(), make_inputs()
    masked = {name: inputs[name] for name in generator.input}
    labels = np.ones((3, 3), "int32")
    generator.fit(masked, labels, sample_weight=np.ones((3, 3)), verbose=0)
    detection = DebertaReplacedTokenDetection(make_backbone(), generator)
    detection.save_to_preset(str(tmp_path / "preset"))
    loaded = DebertaReplacedTokenDetection.from_preset(str(tmp_path / "preset"))
    assert_same_outputs(loaded(inputs), detection(inputs), 0.0)
    assert generator.optimizer.built


@pytest.mark.parametrize("embedding_sharing", EMBEDDING_SHARINGS)
def test_other_tasks_start_from_the_discriminator(tmp_path, embedding_sharing):
    detection, inputs = make_detection(embedding_sharing), make_inputs()
    detection.save_to_preset(str(tmp_path / "preset"))
    with pytest.warns(UserWarning, match="no head for DebertaTextClassifier"):
        classifier = DebertaTextClassifier.from_preset(
            str(tmp_path / "preset"), num_classes=2
        )
    table = classifier.backbone.token_embedding
    np.testing.assert_array_equal(table.embeddings, table_by_hand(detection))
    assert table.trainable
    states = classifier.backbone.hidden_states(inputs)
    logits = detection.head(states, inputs)
    np.testing.assert_allclose(logits, detection.discriminate(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"vocabulary_size": 90}, "vocabulary_size=104 and 90"),
        ({"embedding_dim": 8}, "embedding_dim=16 and 8"),
        ({"num_segments": 2}, "num_segments=0 and 2"),
        ({"dtype": "mixed_bfloat16"}, "dtype='float32' and 'mixed_bfloat16'"),
    ],
)
def test_networks_that_do_not_fit_are_told_apart_by_name(generator, message):
    with pytest.raises(ValueError, match=message):
        DebertaReplacedTokenDetection(make_backbone(), make_generator(**generator))


def test_tables_of_their_own_may_differ_in_width():
    generator = make_generator(embedding_dim=8)
    detection = DebertaReplacedTokenDetection(make_backbone(), generator, "nes")
    outputs = detection(make_inputs())
    assert np.all(np.isfinite(outputs["logits"]))


def test_an_unknown_sharing_is_refused():
    with pytest.raises(ValueError, match="gdes, es, nes. Received: 'none'"):
        DebertaReplacedTokenDetection(make_backbone(), make_generator(), "none")


def test_one_backbone_cannot_be_both_networks():
    generator = make_generator()
    with pytest.raises(ValueError, match="a backbone of its own"):
        DebertaReplacedTokenDetection(generator.backbone, generator)


@pytest.mark.parametrize("embedding_sharing", ["gdes", "es"])
def test_absolute_positions_at_the_input_are_not_shared(embedding_sharing):
    backbone = make_backbone(absolute_position_input=True)
    with pytest.raises(ValueError, match="absolute_position_input=True needs .*'nes'"):
        DebertaReplacedTokenDetection(backbone, make_generator(), embedding_sharing)


def test_absolute_positions_at_the_input_go_with_tables_of_their_own():
    detection = make_detection("nes", absolute_position_input=True)
    table = detection.backbone.embeddings.position_embedding.embeddings
    inputs = make_inputs()
    before = detection(inputs)["logits"]
    table.assign(table + np.random.default_rng(1).normal(size=table.shape))
    assert np.abs(detection(inputs)["logits"] - before).max() > 1e-2
