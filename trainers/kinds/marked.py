"""Two marked spans of a text or a pair of texts: WiC and WSC."""

import tensorflow as tf

from deberta_tf.span_classifier import (
    DebertaSpanClassifier,
    DebertaSpanClassifierPreprocessor,
)
from trainers.kinds.encoded import Encoded, class_ids, in_chunks
from trainers.kinds.text import answers, score

# Classes are answered and scored as those of texts are.
__all__ = ["answers", "encode", "make_task", "score"]


def make_task(setup, load, tokenizer):
    return load(
        DebertaSpanClassifier,
        labels=setup.names,
        dropout=setup.config.classifier_dropout,
        preprocessor=DebertaSpanClassifierPreprocessor(
            tokenizer, setup.config.sequence_length
        ),
    )


def encode(setup, task, examples):
    columns = examples.columns
    segments = [name for name in ("text", "text_pair") if name in columns]

    def pack(spans, *texts):
        places = tf.constant(spans, tf.int32)
        x = {
            name: tf.constant(text) for name, text in zip(segments, texts, strict=True)
        }
        x |= {"span_starts": places[..., 0], "span_ends": places[..., 1]}
        return task.inputs_in(task.preprocess_samples(x))

    inputs = in_chunks(pack, columns["spans"], *(columns[name] for name in segments))
    return Encoded(inputs, class_ids(setup, examples))
