"""What every task answers where nothing is installed but TensorFlow and TF-Text."""

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from deberta_tf.windows import WINDOW_ROWS
from tests import served_tasks
from tools.warm_up import read_graph

ANSWER = """
    import pickle, sys
    import tensorflow as tf, tensorflow_text
    with open(sys.argv[1], "rb") as file:
        asked = pickle.load(file)
    found = {}
    for kind, (path, signatures) in asked.items():
        served = tf.saved_model.load(path)
        for name, inputs in signatures.items():
            given = {key: tf.constant(value) for key, value in inputs.items()}
            answers = served.signatures[name](**given)
            found[kind, name] = {key: x.numpy() for key, x in answers.items()}
    assert not {"keras_hub", "deberta_tf"} & set(sys.modules)
    with open(sys.argv[2], "wb") as file:
        pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def tasks(sentencepiece_proto):
    """{kind: `Served`}."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    return {kind: served_tasks.make(kind, tokenizer) for kind in served_tasks.KINDS}


@pytest.fixture(scope="module")
def paths(tasks, tmp_path_factory):
    """{kind: the folder of the version}."""
    folder = tmp_path_factory.mktemp("served")
    return {
        kind: one.task.export_for_serving(str(folder / kind))
        for kind, one in tasks.items()
    }


@pytest.fixture(scope="module")
def answers(tasks, paths, tmp_path_factory):
    """{(kind, signature): dict of arrays}, of a process without this project."""
    folder = tmp_path_factory.mktemp("answers")
    asked = {
        kind: (
            paths[kind],
            {name: _arrays(inputs) for name, (inputs, _) in one.asked.items()},
        )
        for kind, one in tasks.items()
    }
    (folder / "asked").write_bytes(pickle.dumps(asked))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ANSWER), "asked", "found"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return pickle.loads((folder / "found").read_bytes())


def _arrays(inputs):
    """Numbers as the signatures take them; texts as they are."""
    return {
        name: np.array(value, np.int32) if "starts" in name or "ends" in name else value
        for name, value in inputs.items()
    }


@pytest.fixture(scope="module")
def graphs(paths):
    """{kind: MetaGraphDef}."""
    return {kind: read_graph(path) for kind, path in paths.items()}


@pytest.fixture(scope="module")
def served(paths):
    """{kind: what is loaded}."""
    return {kind: tf.saved_model.load(path) for kind, path in paths.items()}


every_kind = pytest.mark.parametrize("kind", served_tasks.KINDS)


@every_kind
def test_a_process_without_this_project_answers_every_signature(kind, tasks, answers):
    for signature, (_, expected) in tasks[kind].asked.items():
        found = answers[kind, signature]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if found[name].dtype == object:
                texts = np.vectorize(bytes.decode, otypes=[object])(found[name])
                np.testing.assert_array_equal(texts, value, err_msg=name)
            else:
                np.testing.assert_allclose(
                    found[name], value, atol=1e-5, rtol=1e-5, err_msg=name
                )


@every_kind
def test_ids_give_the_logits_of_the_model(kind, tasks, served):
    task = tasks[kind].task
    rng = np.random.default_rng(0)
    inputs = {}
    for name, one in task.input.items():
        # Of positions, two of two each.
        shape = [2, 2, 2] if "positions" in name else [3, 2, 7][-len(one.shape) :]
        inputs[name] = tf.constant(rng.integers(0, 2, shape), tf.int32)
    logits = served[kind].signatures["token_ids"](**inputs)["logits"]
    np.testing.assert_allclose(logits, task(inputs), atol=1e-5)


@every_kind
def test_no_op_is_newer_than_those_of_2_12(kind, graphs):
    used = served_tasks.ops(graphs[kind])
    assert "StatefulPartitionedCall" in used
    # Byte pairs need nothing but TensorFlow.
    known = served_tasks.known_ops(with_text=kind != "byte_pair_classifier")
    assert used - known == set()


@every_kind
def test_nothing_is_drawn_and_positions_are_not_projected(kind, graphs, served):
    assert not [op for op in served_tasks.ops(graphs[kind]) if "Random" in op]
    for signature in served[kind].signatures.values():
        read = {variable.name for variable in signature.variables}
        assert any("block_0/attention/key" in name for name in read)
        assert not [name for name in read if "relative_" in name]


@every_kind
def test_no_examples_have_no_answers(kind, tasks, served):
    for name, (inputs, expected) in tasks[kind].asked.items():
        given = {key: tf.constant(value)[:0] for key, value in _arrays(inputs).items()}
        found = served[kind].signatures[name](**given)
        assert {key: x.shape[1:] for key, x in found.items()} == {
            key: x.shape[1:] for key, x in expected.items()
        }
        assert all(len(x) == 0 for x in found.values())


def test_sentences_without_words_have_no_labels(served):
    words = tf.constant([[], []], tf.string)
    answers = served["token_classifier"].signatures["serving_default"](words=words)
    assert answers["labels"].shape == answers["scores"].shape == (2, 0)


@pytest.mark.parametrize(
    ("kind", "signature", "names"),
    [
        ("text_classifier", "text_pairs", ("text", "text_pair")),
        ("question_answering", "serving_default", ("question", "context")),
        ("multiple_choice", "serving_default", ("text", "choices")),
    ],
)
def test_texts_that_are_not_equally_many_are_named(kind, signature, names, served):
    rows = {"choices": [["a", "b"]] * 3}
    columns = {names[0]: ["a"], names[1]: rows.get(names[1], ["a", "b"])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be equally many"):
        served[kind].signatures[signature](
            **{name: tf.constant(column) for name, column in columns.items()}
        )


def test_one_row_of_spans_is_not_that_of_several_texts(served):
    inputs = {
        **served_tasks.MARKED_ALONE,
        "span_starts": [[0, 4]],
        "span_ends": [[3, 7]],
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be equally many"):
        served["span_classifier"].signatures["serving_default"](
            **{name: tf.constant(value) for name, value in _arrays(inputs).items()}
        )


def test_spans_of_other_numbers_are_refused(served):
    inputs = {**served_tasks.ENTITIES, "entity_ends": [[12], [12]]}
    with pytest.raises(tf.errors.InvalidArgumentError, match="must match"):
        served["entity_scorer"].signatures["serving_default"](
            **{name: tf.constant(value) for name, value in _arrays(inputs).items()}
        )


def test_contexts_of_more_windows_than_are_read_at_once_are_answered(tasks, served):
    context = " ".join(f"number {index} sold peas." for index in range(400))
    task = tasks["question_answering"].task
    windows = task.preprocessor.windows(["who?"], [context])
    assert len(windows["example"]) > 2 * WINDOW_ROWS
    (expected,) = task.answer(["who?"], [context])
    found = served["question_answering"].signatures["serving_default"](
        question=tf.constant(["who?"]), context=tf.constant([context])
    )
    assert found["answer"].numpy()[0].decode() == expected.text
    np.testing.assert_allclose(found["score"], [expected.score], atol=1e-5)


@every_kind
def test_the_ranks_of_all_outputs_are_told(kind, graphs):
    for name, signature in graphs[kind].signature_def.items():
        unknown = [
            key
            for key, one in signature.outputs.items()
            if one.tensor_shape.unknown_rank and not name.startswith("__")
        ]
        assert unknown == []


def test_a_choice_of_nothing_is_refused(served):
    with pytest.raises(tf.errors.InvalidArgumentError):
        served["multiple_choice"].signatures["serving_default"](
            text=tf.constant(["a"]), choices=tf.constant([[]], tf.string)
        )


@pytest.mark.parametrize("kind", ["text_classifier", "byte_pair_classifier"])
def test_any_bytes_are_a_text_and_answered_as_alone(kind, served):
    answer = served[kind].signatures["serving_default"]
    texts = tf.constant(HARD_TEXTS)
    together = answer(text=texts)["scores"].numpy()
    assert np.all(np.isfinite(together))
    for row in range(len(HARD_TEXTS)):
        alone = answer(text=texts[row : row + 1])["scores"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


HARD_TEXTS = [
    b"",
    b" \t\n",
    b"\xff\xfe\xc3(",
    b"\x00\x01\x7f",
    b"[MASK] [CLS] [SEP] [PAD]",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202eabc e\u0301".encode(),
    b"the old captain " * 60_000,
    b"x" * 5_000,
]


@every_kind
def test_any_server_since_2_12_reads_the_graph(kind, graphs):
    # That of TensorFlow 2.12.1 is 1395.
    assert graphs[kind].graph_def.versions.min_consumer == 12


@pytest.mark.parametrize(
    "kind",
    ["text_classifier", pytest.param("byte_pair_classifier", marks=pytest.mark.slow)],
)
def test_saved_model_cli_answers_strings(kind, tasks, paths, tmp_path):
    # TF-Text's ops come with its import; a model of byte pairs does without.
    script = "from tensorflow.python.tools import saved_model_cli as cli; cli.main()"
    if kind == "text_classifier":
        script = f"import tensorflow_text; {script}"
    inputs, expected = tasks[kind].asked["serving_default"]
    command = ["run", "--dir", paths[kind], "--tag_set", "serve"]
    command += ["--signature_def", "serving_default", "--outdir", str(tmp_path)]
    command += ["--input_exprs", f"text={inputs['text']}"]
    run = subprocess.run([sys.executable, "-c", script, *command], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-5)
