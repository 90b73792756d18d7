"""Prediction: rows cut to their tokens, texts read ahead."""

import threading
import types

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf import inference
from deberta_tf.causal import causal_inputs
from tests import small_models
from tests.mirrored import mirrored
from tests.small_models import randomize

LENGTH = 24
LENGTHS = (5, 9, 7, 2)
# Sums of float32 in another order, of logits up to 10.
TOLERANCE = 2e-5


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


def make_inputs(lengths=LENGTHS, size=LENGTH, seed=0):
    """Rows with so many tokens, then padding."""
    rng = np.random.default_rng(seed)
    mask = np.arange(size) < np.array(lengths)[:, None]
    token_ids = rng.integers(5, 100, mask.shape) * mask
    return {
        "token_ids": token_ids.astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


def make_backbone(**kwargs):
    return small_models.make_backbone(**{"num_layers": 1, **kwargs})


def make_tagger(**backbone):
    task = deberta_tf.DebertaTokenClassifier(make_backbone(**backbone), 3)
    randomize(task)
    return task


def check_predicted(task, inputs, at_tokens=False, atol=TOLERANCE, **kwargs):
    """`predict` gives what the call of the whole rows does, in shape and value."""
    found = task.predict(inputs, verbose=0, **{"batch_size": 2, **kwargs})
    expected = task(inputs, training=False)
    tf.nest.assert_same_structure(found, expected)
    real = np.array(inputs["padding_mask"]) > 0
    for one, other in zip(
        tf.nest.flatten(found), tf.nest.flatten(expected), strict=True
    ):
        assert one.shape == other.shape
        if at_tokens:
            one, other = one[real], other[real]
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.fixture
def lengths_seen(monkeypatch):
    """Lengths of the rows that classifiers' heads have seen, None where dynamic."""
    seen = []
    for kind in (
        deberta_tf.task_heads.ClassificationHead,
        deberta_tf.task_heads.TokenClassificationHead,
    ):

        def call(self, states, *args, kept=kind.call, **kwargs):
            seen.append(states[-1].shape[1])
            return kept(self, states, *args, **kwargs)

        monkeypatch.setattr(kind, "call", call)
    return seen


@pytest.fixture(scope="module")
def tagger():
    return make_tagger()


def masked_lm(**kwargs):
    return deberta_tf.DebertaMaskedLM(make_backbone(), **kwargs)


def replaced_token():
    generator = masked_lm()
    return deberta_tf.DebertaReplacedTokenDetection(make_backbone(), generator)


def int32(**arrays):
    return {name: np.array(one, "int32") for name, one in arrays.items()}


MASKS = int32(mask_positions=[[1, 4, 0], [8, 2, 3], [1, 0, 0], [1, 0, 0]])
REPLACED = {**MASKS, **int32(replaced_ids=[[7, 8, 0]] * 4)}
ENTITIES = int32(entity_positions=[[[1, 2], [3, 0], [0, 0]]] * 3 + [[[1, 0]] * 3])
SPANS = int32(span_positions=[[[1, 3], [2, 4]]] * 3 + [[[0, 1], [1, 2]]])
KINDS = {
    "token": (lambda: make_tagger(num_layers=2), {}),
    "question": (lambda: deberta_tf.DebertaQuestionAnswering(make_backbone()), {}),
    "masks": (masked_lm, MASKS),
    "tokens": (lambda: masked_lm(enhanced_mask_decoder=False), {}),
    "replaced": (replaced_token, REPLACED),
    "entities": (lambda: deberta_tf.DebertaEntityScorer(make_backbone()), ENTITIES),
    "spans": (lambda: deberta_tf.DebertaSpanClassifier(make_backbone(), 2), SPANS),
}


@pytest.mark.parametrize(
    "kind",
    [
        "token",
        "masks",
        "tokens",
        "replaced",
        slow("question"),
        slow("entities"),
        slow("spans"),
    ],
)
def test_every_kind_predicts_what_whole_rows_give(kind):
    make, more = KINDS[kind]
    task = make()
    randomize(task)
    check_predicted(task, {**make_inputs(), **more})


@pytest.mark.parametrize(
    "backbone",
    [
        {"attention_form": "gather", "num_segments": 2},
        {"convolution_kernel_size": 3, "absolute_position_input": True},
        slow({"bucket_size": 0, "share_position_projections": False}),
        slow({"position_terms": (), "absolute_position_input": True}),
        slow({"scan_layers": True, "num_layers": 2, "attention_form": "product"}),
    ],
    ids=",".join,
)
def test_every_encoder_predicts_what_whole_rows_give(backbone):
    inputs = make_inputs()
    if "num_segments" in backbone:
        inputs["segment_ids"] = np.arange(LENGTH) % 2 * inputs["padding_mask"]
    check_predicted(make_tagger(**backbone), inputs)


def test_all_positions_of_a_mask_decoder_are_right_at_tokens():
    task = masked_lm()
    randomize(task)
    check_predicted(task, make_inputs(), at_tokens=True)


def test_choices_are_trimmed_to_the_longest(lengths_seen):
    task = deberta_tf.DebertaMultipleChoice(make_backbone())
    randomize(task)
    inputs = {
        name: value.reshape(2, 2, LENGTH) for name, value in make_inputs().items()
    }
    check_predicted(task, inputs)
    task.run_eagerly, task.predict_function = True, None
    lengths_seen.clear()
    task.predict(inputs, batch_size=1, verbose=0)
    assert lengths_seen == [16, 8]


@pytest.mark.parametrize("decoder", [True, slow(False)])
def test_rows_that_see_what_is_before_alone_are_trimmed_on_both_axes(decoder):
    task = masked_lm(enhanced_mask_decoder=decoder)
    randomize(task)
    inputs, _, weights = causal_inputs(**make_inputs())
    inputs = {name: value.numpy() for name, value in inputs.items()}
    found = task.predict(inputs, batch_size=2, verbose=0)
    real = weights.numpy() > 0
    np.testing.assert_allclose(found[real], task(inputs)[real], atol=TOLERANCE)


def test_a_query_that_is_no_key_is_kept():
    """The last token looks at the first, and nobody at it."""
    inputs = make_inputs([12], size=16)
    mask = np.zeros([1, 16, 16], "int32")
    mask[:, :3, :3] = mask[:, 11, 0] = 1
    assert inference.computed_length({**inputs, "padding_mask": mask}) == 16
    mask[:, 11] = 0
    assert inference.computed_length({**inputs, "padding_mask": mask}) == 8


def test_padding_is_not_computed(lengths_seen):
    task = make_tagger()
    task.compile(run_eagerly=True)
    lengths_seen.clear()
    task.predict(make_inputs([3, 7, 8, 1, 24]), batch_size=2, verbose=0)
    # A column of padding stays, and the length is a multiple of 8.
    assert lengths_seen == [8, 16, 24]


def test_a_single_batch_is_trimmed_too(lengths_seen):
    task, inputs = make_tagger(), make_inputs()
    task.compile(run_eagerly=True)
    expected = task(inputs)
    lengths_seen.clear()
    found = task.predict_on_batch(inputs)
    assert lengths_seen == [16]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_no_length_is_traced_for_itself(lengths_seen):
    task = make_tagger()
    lengths_seen.clear()
    task.predict(make_inputs([3, 4, 9, 4, 24, 17]), batch_size=2, verbose=0)
    task.predict(make_inputs([20, 20]), batch_size=2, verbose=0)
    assert lengths_seen == [None]


def test_padding_before_and_between_tokens_stays(tagger):
    inputs = make_inputs([12, 10])
    inputs["padding_mask"][0, :5] = inputs["padding_mask"][1, 3:7] = 0
    check_predicted(tagger, inputs)


def test_rows_without_a_token_have_outputs(tagger):
    check_predicted(tagger, make_inputs([0, 0]))


def test_calls_with_rows_of_other_lengths_are_right(tagger):
    for size in (4, 20, 7):
        check_predicted(tagger, make_inputs([size - 2, 2], size))


def test_long_rows_are_whole_unless_what_is_left_is_short(lengths_seen, monkeypatch):
    """Their queries are taken in blocks, in less memory, where the length is known."""
    monkeypatch.setattr(inference, "UNDIVIDED", 16)
    task, inputs = make_tagger(), make_inputs([18, 3, 9, 3])
    check_predicted(task, inputs)
    task.run_eagerly, task.predict_function = True, None
    lengths_seen.clear()
    task.predict(inputs, batch_size=2, verbose=0)
    assert lengths_seen == [LENGTH, 16]


@pytest.mark.parametrize(
    ("backbone", "compiled"), [({}, True), ({"clamp_distances": False}, False)]
)
def test_lengths_that_must_be_known_are_whole(backbone, compiled, lengths_seen):
    task = make_tagger(**backbone)
    task.compile(jit_compile=compiled)
    inputs = make_inputs()
    lengths_seen.clear()
    task.predict(inputs, verbose=0)
    assert lengths_seen == [LENGTH]
    check_predicted(task, inputs, batch_size=4)


def test_rows_are_whole_on_tpus(lengths_seen, monkeypatch):
    task = make_tagger()
    strategy = object.__new__(tf.distribute.TPUStrategy)
    monkeypatch.setattr(task, "_distribute_strategy", strategy)
    lengths_seen.clear()
    task.predict_step((make_inputs(),))
    assert lengths_seen == [LENGTH]


@pytest.mark.slow
def test_replicas_trim_their_own_rows():
    with mirrored(2).scope():
        task = make_tagger()
    check_predicted(task, make_inputs())


@pytest.mark.parametrize(
    "policy", [slow("bfloat16"), "mixed_bfloat16", slow("mixed_float16")]
)
def test_every_policy_predicts_what_whole_rows_give(policy):
    # Three digits of bfloat16, of logits up to 10.
    check_predicted(make_tagger(dtype=policy), make_inputs(), atol=0.2)


@pytest.fixture
def preprocessor(sentencepiece_proto):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    return deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, sequence_length=32)


def test_the_next_batch_is_tokenised_while_one_is_computed(preprocessor, sentences):
    task = deberta_tf.DebertaTextClassifier(
        make_backbone(), 2, preprocessor=preprocessor
    )
    texts = sentences[:6]
    tokenised = {text: threading.Event() for text in texts}
    pack, step = preprocessor.call, task.predict_step
    waited = []

    def note(text):
        tokenised[text.decode()].set()
        return text

    def call(x, *args, **kwargs):
        x = tf.map_fn(lambda one: tf.numpy_function(note, [one], tf.string), x)
        return pack(tf.ensure_shape(x, [None]), *args, **kwargs)

    def wait(outputs):
        # Nobody tokenises it but a pipeline that goes on while this waits.
        text = texts[min(len(waited) + 1, 5)]
        waited.append(all(waited) and tokenised[text].wait(timeout=60))
        return outputs

    def predict_step(data):
        outputs = step(data)
        return tf.ensure_shape(
            tf.numpy_function(wait, [outputs], tf.float32), outputs.shape
        )

    preprocessor.call, task.predict_step = call, predict_step
    assert task.predict(texts, batch_size=1, verbose=0).shape == (6, 2)
    assert waited == [True] * 6


def test_texts_are_tokenised_in_the_graph_though_grain_is_installed(
    preprocessor, sentences, monkeypatch
):
    class Refusing:
        @staticmethod
        def source(inputs):
            raise AssertionError("grain tokenises op by op")

    grain = types.SimpleNamespace(
        MapDataset=Refusing, IterDataset=Refusing, DataLoader=Refusing
    )
    monkeypatch.setattr(keras_hub.src.utils.pipeline_model, "grain", grain)
    task = deberta_tf.DebertaTextClassifier(
        make_backbone(), 2, preprocessor=preprocessor
    )
    pairs = (sentences[:3], sentences[3:6])
    for texts in (sentences[:3], pairs):
        found = task.predict(texts, batch_size=2, verbose=0)
        np.testing.assert_allclose(found, task(preprocessor(texts)), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "an example or more"), ("a text", "batch dimension")],
)
def test_what_is_no_batch_of_examples_is_refused(texts, message, preprocessor):
    task = deberta_tf.DebertaTextClassifier(
        make_backbone(), 2, preprocessor=preprocessor
    )
    with pytest.raises(ValueError, match=message):
        task.predict(texts)
