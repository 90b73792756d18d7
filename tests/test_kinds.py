"""Rows, answers and scores of every kind of task, of models that are always right."""

import dataclasses

import numpy as np
import pytest

from deberta_tf import files
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import make_backbone
from tests.task_examples import COLUMNS, hidden, make, perfect_outputs
from trainers.finetune_data import KINDS, make_setup
from trainers.kinds import entities, spans, tags
from trainers.kinds.encoded import accuracies_by, answer_column, class_ids
from trainers.tasks.record import ANSWERS, TaskExamples


@pytest.fixture(scope="module")
def make_task(sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    backbone = make_backbone(num_layers=1, num_segments=2, max_sequence_length=64)

    def load(task_class, **arguments):
        return task_class(backbone, **arguments)

    def make_task(setup):
        return KINDS[setup.record.kind].make_task(setup, load, tokenizer)

    return make_task


@pytest.fixture(params=COLUMNS)
def name(request):
    return request.param


def test_right_outputs_have_full_scores(name, make_task):
    setup, examples = make(name)
    kind = KINDS[setup.record.kind]
    task = make_task(setup)
    encoded = kind.encode(setup, task, examples)
    outputs = perfect_outputs(setup, encoded)
    answers = kind.answers(setup, outputs, encoded, examples)
    assert [answer["id"] for answer in answers] == examples.columns["id"]
    scores = kind.score(setup, answers, examples)
    assert set(setup.record.scores) <= set(scores)
    for score in setup.record.scores:
        assert scores[score] == pytest.approx(1.0)
    # What the model is fed is what it takes.
    for key, value in task.input.items():
        if key != "entity_positions":
            assert encoded.inputs[key].shape[1:] == (
                tuple(value.shape[1:-1]) + encoded.inputs[key].shape[-1:]
                if None not in value.shape[1:]
                else encoded.inputs[key].shape[1:]
            )


def test_wrong_outputs_have_other_scores(name, make_task):
    setup, examples = make(name)
    kind = KINDS[setup.record.kind]
    encoded = kind.encode(setup, make_task(setup), examples)
    outputs = -perfect_outputs(setup, encoded)
    answers = kind.answers(setup, outputs, encoded, examples)
    scores = kind.score(setup, answers, examples)
    assert scores[setup.record.scores[0]] < 0.5


def test_hidden_answers_are_predicted_all_the_same(name, make_task):
    setup, examples = make(name)
    kind = KINDS[setup.record.kind]
    task = make_task(setup)
    outputs = perfect_outputs(setup, kind.encode(setup, task, examples))
    without = hidden(examples, ANSWERS[setup.record.kind])
    encoded = kind.encode(setup, task, without)
    assert encoded.targets is None
    assert answer_column(setup, without) is None
    answers = kind.answers(setup, outputs, encoded, without)
    assert len(answers) == len(examples)


def test_the_answers_of_a_part_of_the_rows_are_those_of_its_examples(name, make_task):
    """A dry run scores one batch."""
    setup, examples = make(name)
    kind = KINDS[setup.record.kind]
    encoded = kind.encode(setup, make_task(setup), examples)
    outputs = perfect_outputs(setup, encoded)
    answers = kind.answers(setup, outputs[:1], encoded, examples)
    assert [a["id"] for a in answers] == examples.columns["id"][: len(answers)]
    assert kind.score(setup, answers, examples)


def test_windows_without_the_answer_point_at_the_first_token(make_task):
    setup, examples = make("squad1")
    encoded = spans.encode(setup, make_task(setup), examples)
    of_second = encoded.places.example == 1
    assert of_second.sum() > 2
    has_answer = encoded.targets[of_second].max(axis=1) > 0
    # The third "captain" is in one of the last windows.
    assert not has_answer[0]
    row = np.nonzero(of_second)[0][has_answer][0]
    first, last = encoded.targets[row]
    context = examples.columns["context"][1]
    start = encoded.places.starts[row, first]
    end = encoded.places.ends[row, last]
    assert (context[start:end], start) == (
        "captain",
        examples.columns["answer_starts"][1][0],
    )


def test_the_best_spans_are_kept_with_their_shares(make_task):
    setup, examples = make("squad2")
    encoded = spans.encode(setup, make_task(setup), examples)
    answers = spans.answers(setup, perfect_outputs(setup, encoded), encoded, examples)
    assert [a["prediction"] for a in answers] == ["Doctor Quinn", "captain", ""]
    for answer in answers:
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
        assert max(answer["scores"], key=answer["scores"].get) == answer["prediction"]
    assert answers[2]["no_answer_score"] > 0 > answers[0]["no_answer_score"]


def test_a_margin_above_the_threshold_is_no_answer(make_task):
    setup, examples = make("squad2", no_answer_threshold=100.0)
    encoded = spans.encode(setup, make_task(setup), examples)
    outputs = perfect_outputs(setup, encoded)
    answers = spans.answers(setup, outputs, encoded, examples)
    assert all(answer["prediction"] for answer in answers)
    scores = spans.score(setup, answers, examples)
    assert scores["exact"] == pytest.approx(2 / 3)
    assert scores["best_exact"] == 1.0


@pytest.mark.parametrize(
    ("counts", "documents", "expected"),
    [
        # Sentences share a row while they fit, and their document is the same.
        ([[1, 2], [3], [1]], [0, 0, 0], [[0, 0, 1], [2]]),
        ([[1, 2], [3], [1]], [0, 1, 1], [[0, 0], [1, 2]]),
        # A sentence that is too long goes on in the next row, and others after it.
        ([[4], [3, 3, 3], [3]], [0, 0, 0], [[0], [1, 1], [1, 2]]),
        # A word that is longer than a row, and one without a token.
        ([[1, 9, 0, 2]], [0], [[0], [0], [0, 0]]),
    ],
)
def test_rows_hold_whole_sentences_of_one_document(counts, documents, expected):
    counts = [np.array(own) for own in counts]
    rows = tags.rows_of_documents(counts, documents, budget=6)
    assert [[sentence for sentence, _ in row] for row in rows] == expected
    places = [place for row in rows for place in row]
    assert places == [(s, w) for s, own in enumerate(counts) for w in range(len(own))]


def test_a_sentence_begins_without_a_space_in_a_row_of_several(make_task):
    setup, examples = make("conll2003")
    task = make_task(setup)
    encoded = tags.encode(setup, task, examples)
    tokenizer = task.preprocessor.tokenizer
    words = examples.columns["words"]
    ids = [tokenizer.cls_token_id]
    for sentence in words[:2]:
        for index, word in enumerate(sentence):
            ids += tokenizer.tokenize(" " * (index > 0) + word).numpy().tolist()
    assert encoded.inputs["token_ids"][0, : len(ids)].tolist() == ids


def test_a_label_that_is_no_class_is_named():
    setup, examples = make("mrpc")
    setup = dataclasses.replace(setup, names=["not_equivalent", "other"])
    with pytest.raises(
        files.UsageError, match="label 'equivalent' in row 2; .*'other'"
    ):
        class_ids(setup, examples)


def test_close_entities_are_told_apart(make_task):
    """Probabilities of six digits would be equal."""
    setup, examples = make("record")
    encoded = entities.encode(setup, make_task(setup), examples)
    outputs = np.where(encoded.targets == 1, 18.0, 15.0).astype("float32")
    answers = entities.answers(setup, outputs, encoded, examples)
    assert [answer["prediction"] for answer in answers] == ["Oslo", "captain"]


def test_a_token_of_a_space_alone_is_no_answer(make_task):
    setup, examples = make("squad1")
    encoded = spans.encode(setup, make_task(setup), examples)
    places = encoded.places
    places.ends[:, 5] = places.starts[:, 5]
    outputs = np.zeros([len(encoded), 32, 2], "float32")
    outputs[:, 5] = 99.0
    answers = spans.answers(setup, outputs, encoded, examples)
    assert all(answer["prediction"] for answer in answers)


def test_languages_and_levels_have_scores_of_their_own():
    _, examples = make("race")
    assert accuracies_by("level", np.array([True, False, False]), examples) == {
        "accuracy_high": 0.5,
        "accuracy_middle": 0.0,
    }
    assert accuracies_by("language", np.array([True]), examples) == {}


def test_tags_that_are_no_entities_have_accuracy_alone():
    setup, _ = make("conll2003")
    assert setup.record.best_by == "f1"
    words = TaskExamples("tags", {"tags": [["O", "B-PER", "NN"]]})
    config = dataclasses.replace(setup.config, task="tags")
    assert make_setup(config, words).record.scores == ("accuracy",)
