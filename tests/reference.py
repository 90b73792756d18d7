"""Disentangled attention in float64 NumPy, one pair of positions at a time.

Written from the formulas of the paper and of the released weights, by loops, and
shares no code with the library.
"""

import math

import numpy as np


def bucket(distance, bucket_size, max_distance, clamp=True):
    """The log bucket of one distance."""
    if clamp:
        distance = max(-(max_distance - 1), min(max_distance - 1, distance))
    middle = bucket_size // 2
    if abs(distance) <= middle:
        return distance
    share = math.log(abs(distance) / middle) / math.log((max_distance - 1) / middle)
    number = middle + math.ceil(share * (middle - 1))
    if abs(distance) < max_distance:
        number = min(number, bucket_size - 1)
    return int(math.copysign(number, distance))


def table_row(distance, bucket_size, max_distance, clamp=True):
    """The row of the relative table for one distance."""
    middle = bucket_size or max_distance
    if bucket_size:
        distance = bucket(distance, bucket_size, max_distance, clamp)
    return max(0, min(2 * middle - 1, distance + middle))


def position_terms(query, key, position_key, position_query, row, positions):
    """Sum of c2p and p2c for one head of one example.

    Args:
        query: (q, h). key: (k, h). position_key, position_query: (r, h) or None.
        row: function from a distance to a row. positions: (q,), of the queries.

    Returns:
        (q, k).
    """
    scores = np.zeros((len(query), len(key)))
    for i in range(len(query)):
        for j in range(len(key)):
            r = row(int(positions[i]) - j)
            if position_key is not None:
                scores[i, j] += query[i] @ position_key[r]
            if position_query is not None:
                scores[i, j] += key[j] @ position_query[r]
    return scores


def attention(query, memory, table, mask, weights, num_heads, terms, row, positions):
    """Disentangled attention of one example.

    Args:
        query: (q, d). memory: (k, d). table: (r, d). mask: (q, k) bool.
        weights: dict from a projection's name to (kernel, bias).
        terms: names of the position terms.
        row: function from a distance to a row of the table.
        positions: (q,), positions of the queries.

    Returns:
        (q, d), after the output projection.
    """

    def project(x, name):
        kernel, bias = weights[name]
        return x @ kernel + bias

    contexts = []
    width = weights["query"][0].shape[1] // num_heads
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        q = project(query, "query")[:, part]
        k = project(memory, "key")[:, part]
        v = project(memory, "value")[:, part]
        position_key = position_query = None
        if "c2p" in terms:
            position_key = project(table, "position_key")[:, part]
        if "p2c" in terms:
            position_query = project(table, "position_query")[:, part]
        scores = q @ k.T
        scores += position_terms(q, k, position_key, position_query, row, positions)
        scores /= math.sqrt(width * (1 + len(terms)))
        contexts.append(_softmax(scores, mask) @ v)
    return project(np.concatenate(contexts, axis=1), "attention_output")


def _softmax(scores, mask):
    probabilities = np.zeros_like(scores)
    for i in range(len(scores)):
        allowed = np.flatnonzero(mask[i])
        if len(allowed):
            powers = np.exp(scores[i, allowed] - scores[i, allowed].max())
            probabilities[i, allowed] = powers / powers.sum()
    return probabilities
