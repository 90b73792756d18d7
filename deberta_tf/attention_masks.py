"""Which query may look at which key, and a softmax that keeps to it.

Axes in comments: `b` example, `q` query position, `k` key position, `n` head, `h` head
width.
"""

import tensorflow as tf


def full_mask(attention_mask):
    """Which query may look at which key, bool (b, q, k), from a mask of either rank.

    Of a mask (b, l), padded queries look nowhere either (SPEC 1.7).
    """
    if attention_mask is None:
        return None
    mask = tf.cast(attention_mask, "bool")
    if mask.shape.rank == 3:
        return mask
    return tf.logical_and(mask[:, :, None], mask[:, None, :])


def masked_softmax(scores, attention_mask=None):
    """Softmax over the last axis where a mask allows, exact zeros elsewhere.

    Args:
        scores: float32 (n, b, q, k).
        attention_mask: bool or int (b, q, k), or None.

    Returns:
        float32 (n, b, q, k). A row that allows no key is all zeros, not NaN and
        not uniform (SPEC 1.7).
    """
    if attention_mask is None:
        return tf.nn.softmax(scores)
    mask = full_mask(attention_mask)
    return tf.where(mask[None], uniform_where_lost(scores, mask), 0.0)


def uniform_where_lost(scores, mask):
    """`masked_softmax`, but uniform, not zeros, where a row allows no key.

    Args:
        scores: float32 (n, b, q, k).
        mask: bool (b, q, k), or None.
    """
    if mask is None:
        return tf.nn.softmax(scores)
    return tf.nn.softmax(tf.where(mask[None], scores, scores.dtype.min / 2))


def without_lost(context, mask):
    """Contexts (n, b, q, h), zeros of queries that no key is allowed to.

    Here, where there is the least to set to zero, and not in the probabilities.
    """
    if mask is None:
        return context
    return tf.where(tf.reduce_any(mask, -1)[None, ..., None], context, 0)
