"""Which rows make the batch of a step: computed from its number, never replayed."""

import tensorflow as tf


def training_rows(
    num_rows, batch_size, seed, first_step, last_step, host=0, num_hosts=1
):
    """The rows of the steps `first_step` to `last_step` - 1.

    Example n = step * batch_size + row stands at place n % num_rows of epoch
    n // num_rows, whose order is a permutation keyed by (seed, epoch). So each epoch
    has every row once, and a batch may end one epoch and begin the next.

    Args:
        num_rows: int. Rows of the data.
        batch_size: int. Rows a step, of all hosts together.
        seed: int.
        first_step, last_step: ints.
        host, num_hosts: ints. Of each batch, the block of rows of this host: the
            blocks in the order of the hosts are the batch.

    Returns:
        tf.data.Dataset of (n, row), int64 (batch_size / num_hosts,) each, one element a
        step.

    Raises:
        ValueError: if the hosts do not divide the batch.
    """
    size = host_batch_size(batch_size, num_hosts)
    steps = tf.data.Dataset.range(first_step, last_step)

    def rows_of(step):
        n = step * batch_size + host * size + tf.range(size, dtype=tf.int64)
        return n, tf.map_fn(lambda one: row_of(one, num_rows, seed), n)

    return steps.map(rows_of)


def host_batch_size(batch_size, num_hosts):
    """Rows of a batch that each host reads.

    Raises:
        ValueError: if the hosts do not divide the batch.
    """
    if batch_size % num_hosts:
        raise ValueError(
            f"The hosts must divide the batch. Received: a batch of {batch_size}, "
            f"{num_hosts} hosts"
        )
    return batch_size // num_hosts


def row_of(n, num_rows, seed):
    """The row that example n of the training takes: int64 scalar."""
    epoch = n // num_rows
    return tf.random.experimental.index_shuffle(
        n % num_rows, [tf.cast(seed, tf.int64), epoch], tf.cast(num_rows - 1, tf.int64)
    )


def rows_in_order(num_rows, batch_size, host=0, num_hosts=1):
    """All rows once, in order, in batches of one size; of each, this host's block.

    The last batch is filled up with the last row; whoever scores it cuts the places
    from `num_rows` on, or weighs them with 0.

    Returns:
        tf.data.Dataset of (n, row), int64 (batch_size / num_hosts,) each, n counted
        from 0.
    """
    num_batches = -(-num_rows // batch_size)
    size = host_batch_size(batch_size, num_hosts)

    def rows_of(step):
        n = step * batch_size + host * size + tf.range(size, dtype=tf.int64)
        return n, tf.minimum(n, tf.cast(num_rows - 1, tf.int64))

    return tf.data.Dataset.range(num_batches).map(rows_of)
