"""Texts and pairs of texts: classes, or a number."""

import numpy as np
import tensorflow as tf

from deberta_tf.answer_metrics import multirc_scores
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from trainers import scoring
from trainers.kinds.encoded import (
    Encoded,
    accuracies_by,
    answer_column,
    class_ids,
    in_chunks,
    named_shares,
    softmax,
)


def make_task(setup, load, tokenizer):
    return load(
        DebertaTextClassifier,
        num_classes=1 if setup.names is None else len(setup.names),
        labels=setup.names,
        dropout=setup.config.classifier_dropout,
        preprocessor=DebertaTextClassifierPreprocessor(
            tokenizer, setup.config.sequence_length
        ),
    )


def encode(setup, task, examples):
    segments = [
        examples.columns[name]
        for name in ("text", "text_pair")
        if name in examples.columns
    ]

    def pack(*texts):
        texts = tuple(tf.constant(text) for text in texts)
        packed = task.preprocess_samples(texts if len(texts) > 1 else texts[0])
        return task.inputs_in(packed)

    return Encoded(in_chunks(pack, *segments), _targets(setup, examples))


def _targets(setup, examples):
    if setup.names is not None:
        return class_ids(setup, examples)
    numbers = answer_column(setup, examples)
    return None if numbers is None else np.array(numbers, np.float32)


def answers(setup, outputs, encoded, examples):
    """An answer each of outputs (n, classes), or of a regression's (n, 1)."""
    ids = examples.columns["id"]
    if setup.names is None:
        return [
            {"id": name, "prediction": float(one[0])}
            for name, one in zip(ids, outputs, strict=False)
        ]
    return [
        {
            "id": name,
            "prediction": setup.names[int(row.argmax())],
            "scores": named_shares(setup.names, row),
        }
        for name, row in zip(ids, softmax(outputs), strict=False)
    ]


def score(setup, answers, examples):
    """The scores of the record, of answers that are classes or numbers."""
    labels = answer_column(setup, examples)[: len(answers)]
    found = [answer["prediction"] for answer in answers]
    if setup.names is not None:
        index = {name: i for i, name in enumerate(setup.names)}
        labels, found = ([index[one] for one in each] for each in (labels, found))
    if "group" in examples.columns:
        groups = examples.columns["group"][: len(answers)]
        return multirc_scores(np.array(found), np.array(labels), groups)
    found, labels = np.array(found), np.array(labels)
    return {
        **scoring.score(setup.record.scores, found, labels),
        **accuracies_by("language", found == labels, examples),
    }
