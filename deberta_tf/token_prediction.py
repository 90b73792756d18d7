"""Predicting tokens: cross-entropy over a vocabulary, some positions at a time.

Axes in comments: `n` position, of all rows; `c` position of a chunk; `e` width of the
token table; `v` token of the vocabulary.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

# Logits of all positions together, in bytes of float32, that are computed at once; and
# those of a chunk at most, where they are more.
WHOLE = 64 * 2**20
LARGEST_CHUNK = 256 * 2**20
# Between the seeds of two chunks: a prime, as `dropout` has them.
CHUNK_STRIDE = 15_485_863


class Predictions(NamedTuple):
    """What is left of the logits of some positions.

    Attributes:
        loss: float32 scalar, the sum of the cross-entropies times their weights.
        ids: int32, the likeliest tokens, shaped as the labels.
        drawn: int32, what was drawn from the logits; None where nothing was.
    """

    loss: tf.Tensor
    ids: tf.Tensor
    drawn: tf.Tensor | None


def logits_of(x, table, bias):
    """float32 (…, v) of states (…, e), of tied weights (v, e) and (v,)."""
    logits = tf.matmul(x, tf.cast(table, x.dtype), transpose_b=True)
    return tf.cast(logits, "float32") + tf.cast(bias, "float32")


def predict_tokens(
    x, table, bias, labels, weights, training=False, draw=None, seed=None
):
    """Cross-entropy, likeliest tokens and draws, with no more logits than a chunk's.

    Exactly what the logits of all positions give, to rounding. In training gradients
    are made with each chunk's logits, which are not needed any more then: nothing is
    computed twice, and no gradient passes through what is drawn.

    Args:
        x: (…, e), what the table is multiplied with.
        table: (v, e).
        bias: (v,).
        labels: int (…), ids of the tokens there.
        weights: (…), what each position counts.
        training: bool. Whether gradients may be asked for.
        draw: callable from float32 logits (1, c, v) and a seed to int ids of c
            elements; None: nothing is drawn.
        seed: int (2,), of the draws; each chunk's is another.

    Returns:
        `Predictions`.
    """
    positions = _Positions(
        tf.reshape(tf.cast(labels, "int32"), [-1]),
        tf.reshape(tf.cast(weights, "float32"), [-1]),
        draw,
        None if seed is None else tf.cast(seed, "int32"),
    )
    x = tf.reshape(x, [-1, x.shape[-1]])
    table, bias = tf.convert_to_tensor(table), tf.convert_to_tensor(bias)
    run = _differentiable if training else _plain
    loss, ids, drawn = run(x, table, bias, positions)
    shape = tf.shape(labels)
    drawn = None if draw is None else tf.reshape(drawn, shape)
    return Predictions(loss, tf.reshape(ids, shape), drawn)


def num_chunks(num_positions, vocabulary_size):
    """How many chunks positions are taken in: at least two where logits are large.

    What is computed from logits is as large again: two halves are what all logits are.

    Args:
        num_positions: int, or an int tensor.
        vocabulary_size: int.
    """
    if isinstance(num_positions, int):
        size = 4 * num_positions * vocabulary_size
        return 1 if size <= WHOLE else max(2, -(-size // LARGEST_CHUNK))
    row = 4 * vocabulary_size
    # By rows: bytes may be more than an int32 holds.
    parts = -(-num_positions // max(1, LARGEST_CHUNK // row))
    return tf.where(num_positions <= WHOLE // row, 1, tf.maximum(2, parts))


class _Positions(NamedTuple):
    """What belongs to n positions, besides their states."""

    labels: tf.Tensor
    weights: tf.Tensor
    draw: object
    seed: tf.Tensor | None

    def chunk(self, index, size):
        seed = self.seed
        if seed is not None:
            seed = seed + tf.stack([index * CHUNK_STRIDE, 0])
        begin = [index * size]
        return _Positions(
            tf.slice(self.labels, begin, [size]),
            tf.slice(self.weights, begin, [size]),
            self.draw,
            seed,
        )

    def padded(self, count):
        """With so many positions more that count nothing."""
        labels, weights = (
            tf.pad(one, [[0, count]]) for one in (self.labels, self.weights)
        )
        return _Positions(labels, weights, self.draw, self.seed)


def _plain(x, table, bias, positions):
    outputs, _ = _in_chunks(x, table, bias, positions, training=False)
    return outputs


def _differentiable(x, table, bias, positions):
    @tf.custom_gradient
    def run(x, table, bias):
        outputs, found = _in_chunks(x, table, bias, positions, training=True)

        def gradients(upstream, *_):
            pairs = zip(found, (x, table, bias), strict=True)
            return [tf.cast(upstream * one, of.dtype) for one, of in pairs]

        return outputs, gradients

    return run(x, table, bias)


def _in_chunks(x, table, bias, positions, training):
    """((loss, ids, drawn), gradients): the latter float32, of x, table and bias."""
    # Once, and not a chunk.
    table = tf.cast(table, x.dtype)
    total = x.shape[0] or tf.shape(x)[0]
    chunks = num_chunks(total, table.shape[0])
    if isinstance(chunks, int) and chunks == 1:
        return _chunk(x, table, bias, positions, training)
    size = -(-total // chunks)
    padding = chunks * size - total
    x, positions = tf.pad(x, [[0, padding], [0, 0]]), positions.padded(padding)

    def body(index, sums, parts):
        (loss, *own), gradients = _chunk(
            tf.slice(x, [index * size, 0], [size, -1]),
            table,
            bias,
            positions.chunk(index, size),
            training,
        )
        d_x, of_all = gradients[:1], gradients[1:]
        sums = [one + new for one, new in zip(sums, (loss, *of_all), strict=True)]
        pairs = zip(parts, (*own, *d_x), strict=True)
        return index + 1, sums, [one.write(index, new) for one, new in pairs]

    shapes = [[], table.shape, bias.shape] if training else [[]]
    dtypes = ["int32", "int32", "float32"] if training else ["int32", "int32"]
    _, sums, parts = tf.while_loop(
        lambda index, *_: index < chunks,
        body,
        (
            0,
            [tf.zeros(shape) for shape in shapes],
            [tf.TensorArray(dtype, chunks) for dtype in dtypes],
        ),
        maximum_iterations=chunks,
        # One chunk's logits at a time.
        parallel_iterations=1,
    )
    ids, drawn, *d_x = (one.concat()[:total] for one in parts)
    return (sums[0], ids, drawn), (*d_x, *sums[1:])


def _chunk(x, table, bias, positions, training):
    """What `_in_chunks` gives, of positions that are computed at once."""
    labels, weights, draw, seed = positions
    logits = logits_of(x, table, bias)  # (c, v)
    ids = tf.argmax(logits, -1, output_type="int32")
    drawn = tf.zeros_like(ids)
    if draw is not None:
        drawn = tf.reshape(draw(logits[tf.newaxis], seed), tf.shape(ids))
        drawn = tf.cast(drawn, "int32")
    losses, d_logits = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=logits, labels=labels
    )
    outputs = tf.reduce_sum(losses * weights), ids, drawn
    if not training:
        return outputs, ()
    d_logits *= weights[:, tf.newaxis]
    rounded = tf.cast(d_logits, x.dtype)
    d_x = tf.matmul(rounded, table)
    d_table = tf.matmul(rounded, x, transpose_a=True)
    gradients = (
        tf.cast(d_x, "float32"),
        tf.cast(d_table, "float32"),
        tf.reduce_sum(d_logits, axis=0),
    )
    return outputs, gradients


@keras.saving.register_keras_serializable("deberta_tf")
class TokenLoss(keras.losses.SparseCategoricalCrossentropy):
    """Cross-entropy of logits (…, v), a mean over what the positions count.

    A model that has it need not make all logits at once, see `predict_tokens`.
    """

    def __init__(self, name="token_loss"):
        # Keras's own mean would divide by the entries, filled up ones as well.
        super().__init__(
            from_logits=True, reduction="mean_with_sample_weight", name=name
        )

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("deberta_tf")
class TokenAccuracy(keras.metrics.MeanMetricWrapper):
    """Share of tokens that are predicted, of logits (…, v) or of ids (…)."""

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(_matches, name, dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _matches(labels, predictions):
    if keras.backend.is_int_dtype(predictions.dtype):
        return keras.ops.equal(keras.ops.cast(labels, predictions.dtype), predictions)
    return keras.metrics.sparse_categorical_accuracy(labels, predictions)
