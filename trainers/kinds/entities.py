"""Entities of a passage as answers to a query: ReCoRD."""

import numpy as np
import tensorflow as tf

from deberta_tf.answer_metrics import record_scores
from deberta_tf.entity_scorer import (
    DebertaEntityScorer,
    DebertaEntityScorerPreprocessor,
    mean_over_windows,
)
from trainers.kinds.encoded import Encoded, answer_column, in_chunks

OVERLAP = 256


def make_task(setup, load, tokenizer):
    config = setup.config
    return load(
        DebertaEntityScorer,
        dropout=config.classifier_dropout,
        preprocessor=DebertaEntityScorerPreprocessor(
            tokenizer,
            config.sequence_length,
            OVERLAP if config.window_overlap is None else config.window_overlap,
        ),
    )


def encode(setup, task, examples):
    columns = examples.columns
    preprocessor = task.preprocessor
    width = preprocessor.max_entities

    def pack(passages, queries, entities):
        x = {"passage": tf.constant(passages), "query": tf.constant(queries)}
        for i, name in enumerate(("entity_starts", "entity_ends")):
            x[name] = tf.ragged.constant(
                [[span[i] for span in spans] for spans in entities], tf.int32
            )
        packed = preprocessor.windows(x)
        # The positions of every token would be 80 kB a row.
        return {
            **{name: packed[name] for name in task.backbone.input},
            **{name: packed[name] for name in ("entity_spans", "example")},
        }

    packed = in_chunks(pack, columns["passage"], columns["query"], columns["entities"])
    example = packed.pop("example")
    weights = (packed["entity_spans"][..., 1] > 0).astype(np.float32)
    targets = None
    if "answers" in columns:
        of_example = np.zeros([len(examples), width], np.int32)
        for row, texts in enumerate(mention_texts(examples)):
            right = [text in columns["answers"][row] for text in texts[:width]]
            of_example[row, : len(right)] = right
        targets = of_example[example]

    def expand(inputs):
        spans = inputs.pop("entity_spans")
        return {**inputs, "entity_positions": preprocessor.positions(spans)}

    return Encoded(packed, targets, weights, places=example, expand=expand)


def mention_texts(examples):
    """For each example the texts of its entities."""
    return [
        [passage[start:end] for start, end in entities]
        for passage, entities in zip(
            examples.columns["passage"], examples.columns["entities"], strict=True
        )
    ]


def answers(setup, outputs, encoded, examples):
    """The text of the likeliest mention, and of each text its likeliest one."""
    count = len(outputs)
    is_there = encoded.inputs["entity_spans"][:count, :, 1] > 0
    scores = mean_over_windows(
        tf.constant(outputs), is_there, encoded.places[:count]
    ).numpy()
    found = []
    for row, (name, texts) in enumerate(
        zip(examples.columns["id"], mention_texts(examples), strict=True)
    ):
        if row >= len(scores):
            break
        best = {}
        for text, logarithm in zip(texts, scores[row].tolist(), strict=False):
            best[text] = max(logarithm, best.get(text, -np.inf))
        found.append(
            {
                "id": name,
                "prediction": max(best, key=best.get, default=""),
                # Apart where probabilities of six digits are equal.
                "scores": {text: float(f"{np.exp(x):.9g}") for text, x in best.items()},
            }
        )
    return found


def score(setup, answers, examples):
    wanted = answer_column(setup, examples)[: len(answers)]
    return record_scores(
        {number: one["prediction"] for number, one in enumerate(answers)},
        dict(enumerate(wanted)),
    )
