"""Scores of answers, against the definitions of the official scorers."""

import random

import numpy as np
import pytest

from deberta_tf.answer_metrics import (
    exact_match,
    multirc_scores,
    normalize_answer,
    record_scores,
    squad_scores,
    word_f1,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tpaws!", "cats paws"),
        ("an apple a day", "apple day"),
        ("The", ""),
        ("theatre", "theatre"),
        ("a.b", "ab"),
        ("U.S.A.", "usa"),
        ("Élan – vital", "élan – vital"),
        ("„Zitat“", "„zitat“"),
        ("!?", ""),
        ("", ""),
        ("a\u00a0the\u3000b", "b"),
    ],
)
def test_texts_are_normalised(text, expected):
    # Only ASCII punctuation goes, articles where they are words.
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("the cat", ["Cat."], 1.0, 1.0),
        ("black cat", ["cat", "a dog"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("cat", ["cat cat"], 0.0, 2 / 3),
        ("x", ["y"], 0.0, 0.0),
        ("", [""], 1.0, 1.0),
        ("the", [""], 1.0, 1.0),
        ("", ["cat"], 0.0, 0.0),
        ("cat", [""], 0.0, 0.0),
    ],
)
def test_a_prediction_is_held_against_the_nearest_answer(
    prediction, answers, exact, f1
):
    assert exact_match(prediction, answers) == exact
    assert word_f1(prediction, answers) == pytest.approx(f1)


def test_questions_without_an_answer_count():
    predictions = {"a": "cat", "b": "", "c": "dog", "d": "black cat"}
    answers = {"a": ["the cat"], "b": [], "c": [], "d": ["cat", "!"]}
    found = squad_scores(predictions, answers)
    assert found == pytest.approx(
        {
            "exact": 2 / 4,
            "f1": (1 + 1 + 0 + 2 / 3) / 4,
            "has_answer_exact": 1 / 2,
            "has_answer_f1": (1 + 2 / 3) / 2,
            "no_answer_exact": 1 / 2,
            "no_answer_f1": 1 / 2,
        }
    )
    # Of 1.1, every question has one.
    kept = {q: answers[q] for q in ("a", "d")}
    assert squad_scores(predictions, kept).keys() == {"exact", "f1"}


def test_only_questions_without_an_answer():
    found = squad_scores({"a": "", "b": "x"}, {"a": [], "b": []})
    assert found["exact"] == found["no_answer_f1"] == 0.5
    assert "has_answer_f1" not in found


def test_an_answer_without_words_is_one():
    # To the official scorer too, though nothing is left of it.
    found = squad_scores({"a": "", "b": "x"}, {"a": ["The"], "b": []})
    assert found["has_answer_exact"] == 1.0
    assert found["no_answer_exact"] == 0.0
    decided = squad_scores({"a": ""}, {"a": ["The"]}, {"a": 1.0}, threshold=0.0)
    assert decided["exact"] == 0.0


def decided(predictions, no_answer_scores, threshold):
    return {
        q: "" if no_answer_scores[q] > threshold else text
        for q, text in predictions.items()
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_best_threshold_is_that_of_trying_them_all(seed):
    choose = random.Random(seed)
    questions = [f"q{i}" for i in range(12)]
    words = ["", "cat", "black cat", "a dog"]
    answers = {
        q: [] if choose.random() < 0.4 else choose.choices(words[1:], k=2)
        for q in questions
    }
    predictions = {q: choose.choice(words) for q in questions}
    # All of them differ: the official scan goes through ties one by one.
    no_answer = dict(zip(questions, choose.sample(range(-9, 9), 12), strict=True))
    found = squad_scores(predictions, answers, no_answer, threshold=1.0)
    now = squad_scores(decided(predictions, no_answer, 1.0), answers)
    for name in now:
        assert found[name] == pytest.approx(now[name])
    for name in ("exact", "f1"):
        tried = [
            squad_scores(decided(predictions, no_answer, threshold), answers)[name]
            for threshold in (-100, *no_answer.values())
        ]
        assert found[f"best_{name}"] == pytest.approx(max(tried))
        best = decided(predictions, no_answer, found[f"best_{name}_threshold"])
        if max(tried) > tried[0]:
            assert squad_scores(best, answers)[name] == pytest.approx(max(tried))


def test_where_nothing_should_be_answered_the_threshold_is_zero():
    # The official scorer begins there, whatever the scores.
    answers, predictions = {"a": [], "b": []}, {"a": "x", "b": "y"}
    found = squad_scores(predictions, answers, {"a": 3.0, "b": 4.0})
    assert (found["best_f1"], found["best_f1_threshold"]) == (1.0, 0.0)
    assert found["f1"] == 1.0


def test_a_query_of_record_has_several_right_entities():
    answers = {"a": ["New York", "NYC"], "b": ["Paris"]}
    found = record_scores({"a": "nyc", "b": "the Paris Hilton"}, answers)
    assert found == pytest.approx({"exact": 0.5, "f1": (1 + 2 / 3) / 2})


def test_answers_of_multirc_count_alone_and_by_question():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 2, (2, 60))
    questions = draw.integers(0, 20, 60).tolist()
    found = multirc_scores(predictions, labels, questions)
    expected = sklearn_metrics.f1_score(labels, predictions)
    assert found["f1"] == pytest.approx(expected)
    right = [
        all(predictions[i] == labels[i] for i in range(60) if questions[i] == question)
        for question in set(questions)
    ]
    assert found["exact"] == pytest.approx(np.mean(right))
    assert 0 < found["exact"] < 1


def test_no_positives_at_all():
    zeros = np.zeros(3, int)
    assert multirc_scores(zeros, zeros, "aab") == {"f1": 0.0, "exact": 1.0}
    assert multirc_scores(1 - zeros, zeros, "aab") == {"f1": 0.0, "exact": 0.0}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="needs a prediction.*1 of 2.*'b'"):
        squad_scores({"a": ""}, {"a": [], "b": []})
    with pytest.raises(ValueError, match="needs a no-answer score.*2 of 2.*'a'"):
        squad_scores({"a": "", "b": ""}, {"a": [], "b": []}, {})
    with pytest.raises(ValueError, match="no questions"):
        record_scores({}, {})
    with pytest.raises(ValueError, match="'a' has none"):
        record_scores({"a": "x"}, {"a": []})
    with pytest.raises(ValueError, match="lists of str. Received: 'cat' for 'a'"):
        squad_scores({"a": "cat"}, {"a": "cat"})
    with pytest.raises(ValueError, match="2 answers, 1 questions"):
        multirc_scores([0, 1], [0, 1], ["a"])
