"""Tasks on ids come back from presets, and predict what they did."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from tests.small_models import make_backbone, randomize

TASKS = {
    "token": lambda backbone: deberta_tf.DebertaTokenClassifier(
        backbone, labels=["O", "B", "I"], hidden_layer=True, dropout=0.2
    ),
    "span": deberta_tf.DebertaQuestionAnswering,
    "choice": lambda backbone: deberta_tf.DebertaMultipleChoice(
        backbone, pooler_activation="tanh", pooler_dropout=0.1
    ),
    "entity": lambda backbone: deberta_tf.DebertaEntityScorer(backbone, dropout=0.3),
    "pair": lambda backbone: deberta_tf.DebertaSpanClassifier(
        backbone, labels=["other", "same"], dropout=0.1
    ),
}
SHAPES = {
    "token": (2, 9, 3),
    "span": (2, 9, 2),
    "choice": (2, 4),
    "entity": (2, 3),
    "pair": (2, 2),
}


def make_inputs(name, num_segments=0):
    rng = np.random.default_rng(0)
    shape = (2, 4, 9) if name == "choice" else (2, 9)
    inputs = {
        "token_ids": rng.integers(5, 100, shape).astype("int32"),
        "padding_mask": np.ones(shape, "int32"),
    }
    inputs["padding_mask"][1, ..., 6:] = 0
    if num_segments:
        inputs["segment_ids"] = rng.integers(0, num_segments, shape).astype("int32")
    if name == "entity":
        inputs["entity_positions"] = np.array(
            [[[1, 2], [4, 0], [0, 0]], [[3, 0], [1, 5], [2, 4]]], "int32"
        )
    if name == "pair":
        inputs["span_positions"] = np.array(
            [[[1, 3], [4, 5]], [[2, 3], [0, 0]]], "int32"
        )
    return inputs


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def make_task(name, **kwargs):
    task = TASKS[name](make_backbone(**kwargs))
    randomize(task)
    return task


@pytest.mark.parametrize("num_segments", [0, 2])
def test_logits_have_their_shape_and_float32(name, num_segments):
    task = make_task(name, num_segments=num_segments, dtype="mixed_bfloat16")
    inputs = make_inputs(name, num_segments)
    logits = task.predict(inputs, verbose=0)
    assert logits.shape == SHAPES[name]
    assert logits.dtype == "float32"
    compiled = tf.function(task, jit_compile=True)
    tensors = {key: tf.constant(value) for key, value in inputs.items()}
    # bfloat16 keeps 8 bits; XLA rounds elsewhere.
    np.testing.assert_allclose(compiled(tensors), logits, atol=0.1)


@pytest.mark.parametrize("kind", ["preset", "keras"])
def test_a_task_comes_back_whole(name, kind, tmp_path):
    task = make_task(name)
    if kind == "preset":
        task.save_to_preset(str(tmp_path / "preset"))
        again = type(task).from_preset(str(tmp_path / "preset"))
    else:
        task.save(tmp_path / "task.keras")
        again = keras.saving.load_model(tmp_path / "task.keras")
    inputs = make_inputs(name)
    np.testing.assert_array_equal(again(inputs), task(inputs))
    before, after = task.get_config(), again.get_config()
    for argument in ("labels", "hidden_layer", "dropout", "pooler_activation"):
        assert after.get(argument) == before.get(argument)


def test_choices_are_scored_one_by_one():
    task, inputs = make_task("choice"), make_inputs("choice")
    together = task(inputs).numpy()
    for index in range(4):
        alone = {key: value[:, index : index + 1] for key, value in inputs.items()}
        np.testing.assert_allclose(task(alone)[:, 0], together[:, index], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["token", "choice"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("span", "entity", "pair")
    ],
)
def test_a_loss_of_ones_own_trains_it(name):
    task = make_task(name)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    task.compile(
        keras.optimizers.Adam(1e-2), entropy, metrics=None, weighted_metrics=None
    )
    labels = np.zeros(SHAPES[name][:-1], "int32")
    history = task.fit(make_inputs(name), labels, epochs=12, batch_size=2, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.filterwarnings(
    "ignore:Hugging Face's library has no class with this head:UserWarning"
)
def test_the_order_of_tags_is_that_of_their_names(tmp_path):
    task = make_task("token")
    task.save_to_huggingface(str(tmp_path / "hf"))
    tags = ["I", "O", "B"]
    again = deberta_tf.DebertaTokenClassifier.from_preset(
        str(tmp_path / "hf"), labels=tags
    )
    order = [task.labels.index(tag) for tag in tags]
    inputs = make_inputs("token")
    expected = task(inputs).numpy()[..., order]
    np.testing.assert_allclose(again(inputs), expected, atol=1e-6)
