"""bfloat16 and int8 weights of what is served, beside float32."""

import json
import os
import types

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.files import UsageError
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests import served_tasks
from tests.small_models import make_backbone, randomize
from tools import export_saved_model, served_difference
from tools.warm_up import read_graph

TEXTS = ["the old captain sold the harbour.", "", "my sister painted that song! " * 9]


def make_task(proto, **arguments):
    preprocessor = DebertaTextClassifierPreprocessor(
        DebertaSentencePieceTokenizer(proto), 64
    )
    # Wide enough that its matrices are most of it.
    backbone = make_backbone(
        hidden_dim=64, intermediate_dim=256, max_sequence_length=64, **arguments
    )
    task = DebertaTextClassifier(
        backbone, labels=["calm", "loud"], preprocessor=preprocessor
    )
    randomize(task)
    return task


@pytest.fixture(scope="module")
def task(sentencepiece_proto):
    return make_task(sentencepiece_proto)


@pytest.fixture(scope="module")
def exported(task, tmp_path_factory):
    """{weights: the folder of the version}."""
    folder = tmp_path_factory.mktemp("served")
    return {
        weights: task.export_for_serving(str(folder / weights), weights=weights)
        for weights in ("float32", "bfloat16", "int8")
    }


def stored(path):
    """Bytes of the variables by their dtype."""
    reader = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    sizes = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        dtype = reader.get_variable_to_dtype_map()[name]
        if dtype != tf.string:
            size = int(np.prod(shape)) * dtype.size
            sizes[dtype.name] = sizes.get(dtype.name, 0) + size
    return sizes


def test_weights_are_stored_in_the_dtype_asked_for(exported):
    sizes = {weights: stored(path) for weights, path in exported.items()}
    floats = sizes["float32"]["float32"]
    assert sizes["bfloat16"]["bfloat16"] == floats // 2
    # Matrices and the token table; biases, norms and tables of positions are the rest.
    kept = sizes["int8"]["float32"]
    assert sizes["int8"]["int8"] > 0.7 * floats / 4
    assert sizes["int8"]["int8"] + kept < 0.5 * floats


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 0.05), ("int8", 0.05)])
def test_answers_differ_by_rounding_and_not_by_nothing(task, exported, weights, bound):
    served = tf.saved_model.load(exported[weights])
    scores = served.signatures["serving_default"](text=tf.constant(TEXTS))["scores"]
    expected = tf.nn.softmax(task.predict(TEXTS, verbose=0))
    assert 0 < np.abs(scores - expected).max() < bound


def test_int8_weights_are_those_of_absolute_maxima_by_channel(task, exported):
    reader = tf.train.load_checkpoint(
        os.path.join(exported["int8"], "variables", "variables")
    )
    dtypes = reader.get_variable_to_dtype_map()
    block = task.backbone.encoder.blocks[0]
    kernel = block.intermediate_dense.kernel.numpy()
    expected = np.round(kernel * 127 / np.abs(kernel).max(axis=0))
    found = [
        reader.get_tensor(name)
        for name, dtype in dtypes.items()
        if dtype == tf.int8
        and reader.get_variable_to_shape_map()[name] == [*kernel.shape]
    ]
    distances = [np.abs(one.astype(int) - expected).max() for one in found]
    assert min(distances) <= 1


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_other_weights_need_no_newer_op(exported, weights):
    used = served_tasks.ops(read_graph(exported[weights]))
    assert used - served_tasks.known_ops() == set()


def test_the_task_itself_stays_as_it_is(task, exported):
    assert {weight.dtype for weight in task.backbone.weights} == {"float32"}
    assert task.backbone.encoder._folded is None


def test_a_task_trained_in_half_precision_is_served_in_float32(
    sentencepiece_proto, tmp_path
):
    half = make_task(sentencepiece_proto, dtype="mixed_bfloat16")
    path = half.export_for_serving(str(tmp_path), weights="float32")
    served = tf.saved_model.load(path)
    scores = served.signatures["serving_default"](text=tf.constant(TEXTS))["scores"]
    plain = make_task(sentencepiece_proto)
    plain.set_weights(half.get_weights())
    expected = tf.nn.softmax(plain.predict(TEXTS, verbose=0))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_unknown_weights_are_refused(task, tmp_path):
    with pytest.raises(ValueError, match="float32, bfloat16, int8, or None.*'int4'"):
        task.export_for_serving(str(tmp_path), weights="int4")


def test_a_difference_is_the_largest_of_all_answers(task, exported, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    folder = exported["int8"]
    lines = served_difference.read_lines(str(path))
    examples = served_difference.make_examples(str(path), lines, task)
    found = served_difference.measure(task, folder, examples)
    served = tf.saved_model.load(folder).signatures["serving_default"]
    answers = served(text=tf.constant(TEXTS))
    expected = tf.nn.softmax(task.predict(TEXTS, verbose=0)).numpy()
    assert found.examples == 3
    largest = np.abs(answers["scores"] - expected).max()
    assert found.largest == pytest.approx(largest, abs=1e-6)
    same = answers["scores"].numpy().argmax(-1) == expected.argmax(-1)
    assert found.decided_alike == same.sum()


def test_without_examples_sentences_of_every_length_are_compared(task, exported):
    examples = served_difference.make_examples(None, None, task)
    found = served_difference.measure(task, exported["float32"], examples)
    assert (found.examples, found.decided_alike) == (2, 2)
    assert found.largest < 1e-5


@pytest.mark.slow
def test_the_command_tells_what_other_weights_change(task, tmp_path, capsys):
    preset, output = str(tmp_path / "preset"), str(tmp_path / "calm-or-loud")
    task.save_to_preset(preset)
    command = ["--preset", preset, "--output", output, "--weights", "int8"]
    export_saved_model.main(command)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "weights" in x]
    assert line.startswith("weights int8: answers to 2 examples differ by ")
    card = (tmp_path / "calm-or-loud" / "deployment" / "MODEL_CARD.md").read_text()
    assert line.removeprefix("weights ") in card


@pytest.fixture
def serve(task, monkeypatch):
    """Has every version that is loaded answer as the task, scores times a number."""

    def serve(score):
        function, _ = task.signatures()["serving_default"]

        def answer(text):
            answers = function(text)
            return {**answers, "scores": answers["scores"] * score}

        loaded = types.SimpleNamespace(signatures={"serving_default": answer})
        monkeypatch.setattr(tf.saved_model, "load", lambda folder: loaded)

    return serve


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_version_that_answers_no_numbers_is_told(task, serve, value):
    serve(value)
    examples = served_difference.make_examples(None, None, task)
    with pytest.raises(ValueError, match="'scores' of the version exported has NaN or"):
        served_difference.measure(task, "folder", examples)


def test_a_preset_that_answers_no_numbers_is_told(sentencepiece_proto, serve):
    serve(1.0)
    broken = make_task(sentencepiece_proto)
    for weight in broken.head.weights:
        weight.assign(weight * np.nan)
    examples = served_difference.make_examples(None, None, broken)
    with pytest.raises(ValueError, match="'scores?' of the preset in float32 has NaN"):
        served_difference.measure(broken, "folder", examples)


def test_examples_of_other_inputs_are_one_error(task, tmp_path):
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"text": "a"}\n{"words": ["a"]}\n')
    preset, output = str(tmp_path / "preset"), str(tmp_path / "served")
    task.save_to_preset(preset)
    command = ["--preset", preset, "--output", output, "--examples", str(path)]
    with pytest.raises(UsageError, match="line 2: there is no 'text'"):
        export_saved_model.main(command)
    assert not os.path.exists(output)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty: nothing to compare on"), ("{", "line 1, is not JSON")],
)
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_the_file_of_examples_is_read_before_the_preset(
    tmp_path, text, message, weights
):
    path = tmp_path / "examples.jsonl"
    path.write_text(text)
    # A folder that holds nothing to load.
    command = [f"--preset={tmp_path}", f"--output={tmp_path / 'served'}"]
    command += [f"--examples={path}", f"--weights={weights}"]
    with pytest.raises(UsageError, match=message):
        export_saved_model.main(command)
