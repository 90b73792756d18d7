"""Autoregressive rows for a masked LM: each token is predicted from those before it."""

import tensorflow as tf


def causal_inputs(token_ids, padding_mask):
    """What `DebertaMaskedLM` takes to predict each next token.

    A token sees itself and those before it; at each position but the last the token
    after it is predicted.

    Args:
        token_ids: int (b, l), l static.
        padding_mask: (b, l), nonzero at tokens.

    Returns:
        (inputs, labels, weights): inputs a dict of `token_ids`, int32 (b, l),
        `padding_mask`, bool (b, l, l), and `mask_positions`, int32 (b, l - 1); labels
        int32 (b, l - 1), the next tokens; weights float32, 0 where that is padding.

    Source: SPEC 10.6; UniLM (Dong et al. 2019, arXiv 1905.03197).
    """
    token_ids = tf.cast(token_ids, tf.int32)
    length = token_ids.shape[1]
    real = tf.cast(padding_mask, tf.bool)
    before = tf.range(length)[:, tf.newaxis] >= tf.range(length)
    positions = tf.broadcast_to(tf.range(length - 1), tf.shape(token_ids[:, 1:]))
    inputs = {
        "token_ids": token_ids,
        "padding_mask": before & real[:, tf.newaxis] & real[:, :, tf.newaxis],
        "mask_positions": positions,
    }
    return inputs, token_ids[:, 1:], tf.cast(real[:, 1:], tf.float32)


def joined_inputs(masked, causal, is_causal, causal_weight):
    """Rows of two objectives as one batch.

    Args:
        masked: (inputs, labels, weights) of `NgramMasker`'s rows, with
            `padding_mask` (b, l).
        causal: the same rows as `causal_inputs` returns them.
        is_causal: bool (b,), which of the two each row is.
        causal_weight: float. What a token that is predicted from those before it counts
            beside a masked one.

    Returns:
        (inputs, labels, weights) like `causal`.
    """
    places = causal[1].shape[1]
    inputs, labels, weights = masked
    real = tf.cast(inputs["padding_mask"], tf.bool)
    own = {
        "token_ids": inputs["token_ids"],
        "padding_mask": real[:, tf.newaxis] & real[:, :, tf.newaxis],
        "mask_positions": _widened(inputs["mask_positions"], places),
    }
    pairs = {name: (causal[0][name], value) for name, value in own.items()}
    joined = {name: _chosen(is_causal, *pair) for name, pair in pairs.items()}
    labels = _chosen(is_causal, causal[1], _widened(labels, places))
    weights = _widened(weights, places)
    return joined, labels, _chosen(is_causal, causal_weight * causal[2], weights)


def _widened(values, places):
    """(b, p) to (b, places): zeros, which fill up, are added or cut."""
    values = values[:, :places]
    return tf.pad(values, [[0, 0], [0, places - values.shape[1]]])


def _chosen(condition, one, other):
    shape = [-1] + [1] * (one.shape.rank - 1)
    return tf.where(tf.reshape(condition, shape), one, other)
