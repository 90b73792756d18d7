"""Spans that answer questions: SQuAD 1.1 and 2.0."""

import dataclasses

import numpy as np
import tensorflow as tf

from deberta_tf.answer_metrics import squad_scores
from deberta_tf.question_answering import (
    DebertaQuestionAnswering,
    DebertaQuestionAnsweringPreprocessor,
)
from deberta_tf.windows import best_spans
from trainers.kinds.encoded import Encoded, answer_column, in_chunks, softmax

# Spans that are kept of each window, and of each question.
NUM_BEST = 20
OVERLAP = 128


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which question a row is of, int (w,), and the characters of its tokens in the
    context, int (w, l), -1 where they are none of it."""

    example: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def make_task(setup, load, tokenizer):
    config = setup.config
    return load(
        DebertaQuestionAnswering,
        preprocessor=DebertaQuestionAnsweringPreprocessor(
            tokenizer,
            config.sequence_length,
            OVERLAP if config.window_overlap is None else config.window_overlap,
        ),
        no_answer_threshold=(
            config.no_answer_threshold if setup.record.has_unanswerable else None
        ),
        max_answer_length=config.max_answer_length,
    )


def encode(setup, task, examples):
    columns = examples.columns

    spans = [
        # Of several annotators the first.
        (starts[0], starts[0] + len(texts[0])) if texts else (0, 0)
        for texts, starts in zip(
            columns.get("answers", [[]] * len(examples)),
            columns.get("answer_starts", [[]] * len(examples)),
            strict=True,
        )
    ]

    def pack(questions, contexts, spans):
        return task.preprocessor.windows(
            tf.constant(questions), tf.constant(contexts), tf.constant(spans)
        )

    packed = in_chunks(pack, columns["question"], columns["context"], spans)
    places = Windows(packed["example"], packed["starts"], packed["ends"])
    targets = packed["answer"] if "answers" in columns else None
    return Encoded(task.inputs_in(packed), targets, places=places)


def answers(setup, outputs, encoded, examples):
    """The likeliest spans over all windows, their texts as `scores`."""
    places = encoded.places
    count = len(outputs)
    # No token of spaces alone.
    is_word = places.ends[:count] > places.starts[:count]
    best = _best(outputs, is_word, setup.config.max_answer_length)
    found, nothing = {}, {}
    for row, (example, logits) in enumerate(
        zip(places.example[:count].tolist(), outputs, strict=True)
    ):
        none = float(logits[0].sum())
        nothing[example] = min(none, nothing.get(example, none))
        spans = found.setdefault(example, {})
        context = examples.columns["context"][example]
        for start, end, score in zip(*(one[row] for one in best), strict=True):
            if score < -1e8:
                break  # There are no more.
            text = context[places.starts[row, start] : places.ends[row, end - 1]]
            spans[text] = max(float(score), spans.get(text, -np.inf))
    return [
        _answer(setup, name, found[example], nothing[example])
        for example, name in enumerate(examples.columns["id"])
        if example in found
    ]


def _best(logits, is_word, max_length):
    """Arrays (w, NUM_BEST) of starts, ends and scores."""
    count = min(NUM_BEST, logits.shape[1])
    parts = [
        [
            one.numpy()
            for one in best_spans(
                logits[at : at + 64], is_word[at : at + 64], max_length, count
            )
        ]
        for at in range(0, len(logits), 64)
    ]
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _answer(setup, name, spans, nothing):
    kept = sorted(spans, key=spans.get, reverse=True)[:NUM_BEST]
    text = kept[0] if kept else ""
    margin = nothing - spans[text] if kept else 0.0
    answer = {"id": name, "prediction": text}
    if setup.record.has_unanswerable:
        spans = {**spans, "": nothing}
        kept = [*kept, ""]
        answer["no_answer_score"] = margin
        # What it would be if it had to be one.
        answer["best_text"] = text
        if margin > setup.config.no_answer_threshold:
            answer["prediction"] = ""
    shares = softmax(np.array([spans[one] for one in kept])) if kept else np.ones(0)
    answer["scores"] = dict(zip(kept, np.round(shares, 6).tolist(), strict=True))
    return answer


def score(setup, answers, examples):
    """The official scores, with the best thresholds of SQuAD 2.0."""
    columns = examples.columns
    wanted = dict(zip(columns["id"], answer_column(setup, examples), strict=True))
    wanted = {one["id"]: wanted[one["id"]] for one in answers}
    if not setup.record.has_unanswerable:
        return squad_scores({one["id"]: one["prediction"] for one in answers}, wanted)
    return squad_scores(
        {one["id"]: one["best_text"] for one in answers},
        wanted,
        {one["id"]: one["no_answer_score"] for one in answers},
        setup.config.no_answer_threshold,
    )
