"""Which rows make the batch of a step: computed from its number, never replayed."""

import tensorflow as tf


def training_rows(num_rows, batch_size, seed, first_step, last_step):
    """The rows of the steps `first_step` to `last_step` - 1.

    Example n = step * batch_size + row stands at place n % num_rows of epoch
    n // num_rows, whose order is a permutation keyed by (seed, epoch). So each epoch
    has every row once, and a batch may end one epoch and begin the next.

    Args:
        num_rows: int. Rows of the data.
        batch_size: int. Rows a step.
        seed: int.
        first_step, last_step: ints.

    Returns:
        tf.data.Dataset of (n, row), int64 (batch_size,) each, one element a step.
    """
    examples = tf.data.Dataset.range(first_step * batch_size, last_step * batch_size)
    rows = examples.map(lambda n: (n, row_of(n, num_rows, seed)))
    return rows.batch(batch_size, drop_remainder=True)


def row_of(n, num_rows, seed):
    """The row that example n of the training takes: int64 scalar."""
    epoch = n // num_rows
    return tf.random.experimental.index_shuffle(
        n % num_rows, [tf.cast(seed, tf.int64), epoch], tf.cast(num_rows - 1, tf.int64)
    )


def rows_in_order(num_rows, batch_size):
    """All rows once, in order, in batches of one size.

    The last batch is filled up with the last row; whoever scores it cuts the places
    from `num_rows` on, or weighs them with 0.

    Returns:
        tf.data.Dataset of (n, row), int64 (batch_size,) each, n counted from 0.
    """
    num_batches = -(-num_rows // batch_size)
    places = tf.data.Dataset.range(num_batches * batch_size)
    rows = places.map(lambda n: (n, tf.minimum(n, num_rows - 1)))
    return rows.batch(batch_size, drop_remainder=True)
