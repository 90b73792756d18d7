"""Signatures for export: what a served task answers to strings and to ids."""

import keras
import tensorflow as tf


def export(task, pack, directory):
    """Writes a SavedModel of a classifier with its signatures.

    `serving_default`: `text` string (b,), and `text_pairs`: `text` and `text_pair`;
    both give `label` string (b,), `score` float32 (b,), the label's probability,
    and `scores` float32 (b, num_classes) in the order of the labels. A regression
    gives `score` alone. `token_ids`: `token_ids` and `padding_mask` int32 (b, l), and
    `segment_ids` where the model has segments, to `logits` float32.

    Rows are as long as the longest text of the batch.

    Args:
        task: `DebertaTextClassifier` with its preprocessor.
        pack: callable from a tuple of string tensors to the model's inputs.
        directory: str. The folder to write.
    """
    names = task.labels or [str(index) for index in range(task.num_classes)]

    def answer(*texts):
        logits = task(pack(texts), training=False)
        return _scores(logits) if task.num_classes == 1 else _labels(logits, names)

    def logits_of(inputs):
        return {"logits": task(inputs, training=False)}

    text = tf.TensorSpec([None], tf.string, name="text")
    pair = tf.TensorSpec([None], tf.string, name="text_pair")
    ids = {
        name: tf.TensorSpec([None, None], tf.int32, name=name)
        for name in task.backbone.input
    }
    archive = keras.export.ExportArchive()
    archive.track(task)
    archive.add_endpoint("serving_default", answer, [text])
    archive.add_endpoint("text_pairs", answer, [text, pair])
    archive.add_endpoint("token_ids", logits_of, [ids])
    archive.write_out(directory, verbose=False)


def _scores(logits):
    return {"score": logits[:, 0]}


def _labels(logits, names):
    scores = tf.nn.softmax(logits)
    return {
        "label": tf.gather(tf.constant(names), tf.argmax(scores, axis=-1)),
        "score": tf.reduce_max(scores, axis=-1),
        "scores": scores,
    }
