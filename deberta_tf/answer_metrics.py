"""Scores of answers in words, as the scorers of SQuAD, ReCoRD and MultiRC have them.

Shares in [0, 1], where those scorers print percentages.
"""

import collections
import re
import string

import numpy as np

from deberta_tf.metrics import f1, harmonic_mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text):
    """Lower case, without ASCII punctuation, English articles and extra spaces."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction, answers):
    """1.0 where the prediction is one of the answers when normalised, else 0.0."""
    prediction = normalize_answer(prediction)
    return float(any(prediction == normalize_answer(answer) for answer in answers))


def word_f1(prediction, answers):
    """F1 of the normalised words of a prediction, against the nearest of the answers.

    Where either has no words it is 1.0 if neither has.
    """
    return max(_word_f1(prediction, answer) for answer in answers)


def _word_f1(prediction, answer):
    prediction, answer = (
        normalize_answer(text).split() for text in (prediction, answer)
    )
    if not prediction or not answer:
        return float(prediction == answer)
    same = collections.Counter(prediction) & collections.Counter(answer)
    return harmonic_mean(sum(same.values()), len(prediction), len(answer))


def squad_scores(predictions, answers, no_answer_scores=None, threshold=0.0):
    """Scores of a set of questions, of SQuAD 1.1 or 2.0.

    Args:
        predictions: dict from question to str; "": it has no answer.
        answers: dict from question to list of str; empty: it has none.
        no_answer_scores: dict from question to float, larger where no answer is likely.
            None: the predictions are taken as they are.
        threshold: float. A question whose score is above it is taken to have no
            answer: 0 for differences of scores, 1 takes no notice of probabilities.

    Returns:
        dict of `exact` and `f1` at the threshold. Where some questions have no answer,
        also both for those that have one (`has_answer_…`) and for the others
        (`no_answer_…`). With `no_answer_scores` also `best_exact`, `best_f1` and the
        thresholds that give them, `best_exact_threshold`, `best_f1_threshold`.

    Raises:
        ValueError: if there are no questions, or one has no prediction or score.

    Source: the official evaluate-v2.0.py. That of 1.1 differs where an answer has no
    words.
    """
    _require(answers, predictions, "prediction")
    if no_answer_scores is not None:
        _require(answers, no_answer_scores, "no-answer score")
    golds = {question: _golds(texts) for question, texts in answers.items()}
    has_answer = {question: bool(texts) for question, texts in answers.items()}
    raw = {
        "exact": {q: exact_match(predictions[q], golds[q]) for q in answers},
        "f1": {q: word_f1(predictions[q], golds[q]) for q in answers},
    }
    scores, best = {}, {}
    for name, of_question in raw.items():
        decided = of_question
        if no_answer_scores is not None:
            decided = {
                q: score
                if no_answer_scores[q] <= threshold
                else float(not has_answer[q])
                for q, score in of_question.items()
            }
            best[f"best_{name}"], best[f"best_{name}_threshold"] = _best_threshold(
                of_question, predictions, has_answer, no_answer_scores
            )
        scores[name] = _mean(decided.values())
        if not all(has_answer.values()):
            for kind, wanted in (("has_answer", True), ("no_answer", False)):
                own = [decided[q] for q in answers if has_answer[q] == wanted]
                if own:
                    scores[f"{kind}_{name}"] = _mean(own)
    return {**scores, **best}


def _require(answers, given, what):
    missing = [question for question in answers if question not in given]
    if missing:
        raise ValueError(
            f"Every question needs a {what}. There is none for {len(missing)} of "
            f"{len(answers)}, the first of them {missing[0]!r}"
        )
    if not answers:
        raise ValueError("There are no questions to score")
    for question, texts in answers.items():
        if isinstance(texts, str):
            raise ValueError(
                f"Answers are lists of str. Received: {texts!r} for {question!r}"
            )


def _golds(texts):
    """The answers that have words; without any, the empty one."""
    return [text for text in texts if normalize_answer(text)] or [""]


def _best_threshold(scores, predictions, has_answer, no_answer_scores):
    """(best mean score, the threshold that gives it), over all thresholds."""
    # Above the threshold no question has an answer: those without one are right.
    best = total = sum(not there for there in has_answer.values())
    threshold = 0.0
    for question in sorted(scores, key=no_answer_scores.get):
        if has_answer[question]:
            total += scores[question]
        elif predictions[question]:
            total -= 1
        if total > best:
            best, threshold = total, no_answer_scores[question]
    return best / len(scores), threshold


def record_scores(predictions, answers):
    """Scores of the entities that were chosen for the queries of ReCoRD.

    Args:
        predictions: dict from query to str.
        answers: dict from query to list of str, at least one.

    Returns:
        dict of `exact` and `f1`, means over the queries of the nearest answer's.
    """
    _require(answers, predictions, "prediction")
    without = [query for query, texts in answers.items() if not texts]
    if without:
        raise ValueError(f"A query has at least one answer; {without[0]!r} has none")
    return {
        "exact": _mean(exact_match(predictions[q], answers[q]) for q in answers),
        "f1": _mean(word_f1(predictions[q], answers[q]) for q in answers),
    }


def multirc_scores(predictions, labels, questions):
    """Scores of the answers of MultiRC, of which each is right or wrong.

    Args:
        predictions, labels: int arrays (n,), 1 where an answer is right.
        questions: list of n keys, the question that an answer belongs to.

    Returns:
        dict of `f1`, over all answers (F1a), and `exact`, the share of questions all of
        whose answers are judged rightly.
    """
    score = f1(predictions, labels)
    if len(questions) != len(labels):
        raise ValueError(
            f"Every answer belongs to a question. Received: {len(labels)} answers, "
            f"{len(questions)} questions"
        )
    is_right = {}
    for question, one, other in zip(questions, predictions, labels, strict=True):
        is_right[question] = is_right.get(question, True) and bool(one == other)
    return {"f1": score, "exact": _mean(is_right.values())}


def _mean(values):
    return float(np.mean([float(value) for value in values]))
