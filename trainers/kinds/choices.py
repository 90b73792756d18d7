"""One of several choices: RACE, SWAG, COPA."""

import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.multiple_choice import (
    DebertaMultipleChoice,
    DebertaMultipleChoicePreprocessor,
)
from trainers.kinds.encoded import (
    Encoded,
    accuracies_by,
    answer_column,
    in_chunks,
    named_shares,
    softmax,
)


def make_task(setup, load, tokenizer):
    return load(
        DebertaMultipleChoice,
        dropout=setup.config.classifier_dropout,
        preprocessor=DebertaMultipleChoicePreprocessor(
            tokenizer,
            setup.config.sequence_length,
            setup.record.max_choice_length,
        ),
    )


def encode(setup, task, examples):
    texts, choices = examples.columns["texts"], examples.columns["choices"]
    count = len(choices[0])
    for row, own in enumerate(choices):
        if len(own) != count:
            raise files.UsageError(
                f"{examples.source} has {len(own)} choices in row {row + 1}, {count} "
                "in the first"
            )

    def pack(texts, choices):
        return task.inputs_in(
            task.preprocess_samples((tf.constant(texts), tf.constant(choices)))
        )

    labels = answer_column(setup, examples)
    targets = None if labels is None else np.array(labels, np.int32)
    return Encoded(in_chunks(pack, texts, choices), targets)


def answers(setup, outputs, encoded, examples):
    ids = examples.columns["id"]
    return [
        {
            "id": name,
            "prediction": int(row.argmax()),
            "scores": named_shares(map(str, range(len(row))), row),
        }
        for name, row in zip(ids, softmax(outputs), strict=False)
    ]


def score(setup, answers, examples):
    """Accuracy; of RACE also those of its levels."""
    labels = answer_column(setup, examples)[: len(answers)]
    is_right = np.array(
        [one["prediction"] == label for one, label in zip(answers, labels, strict=True)]
    )
    return {
        "accuracy": float(is_right.mean()),
        **accuracies_by("level", is_right, examples),
    }
