"""Where tokens stand in their text: bytes to characters, in core TensorFlow ops.

A character is a Unicode code point, as in Python's `str`.
"""

import tensorflow as tf

# Unicode White_Space.
_SPACES = (
    *range(0x09, 0x0E),
    *(0x20, 0x85, 0xA0, 0x1680),
    *range(0x2000, 0x200B),
    *(0x2028, 0x2029, 0x202F, 0x205F, 0x3000),
)
# Above every position.
_BEYOND = tf.int32.max


def to_characters(texts, starts, ends):
    """Spans of bytes to spans of characters, without the spaces they begin with.

    A span that is nothing but spaces becomes an empty one at its end; one that
    begins or ends within a character takes all of it.

    Args:
        texts: strings (b,), UTF-8; a malformed sequence is one character.
        starts, ends: int RaggedTensors (b, None), ascending in a row; `ends` excluded.

    Returns:
        (starts, ends), int32 RaggedTensors of the same rows.
    """
    codes, begins = tf.strings.unicode_decode_with_offsets(texts, "UTF-8")
    begins = _dense(begins)
    begin, end = _dense(starts), _dense(ends)
    first = tf.searchsorted(begins, begin, side="right") - 1
    last = tf.searchsorted(begins, end, side="left")
    first = tf.minimum(_next_word(codes, tf.maximum(first, 0)), last)
    return _as(starts, first), _as(ends, last)


def _next_word(codes, positions):
    """The first character at each position or after it that is no space."""
    is_space = tf.reduce_any(codes.values[:, tf.newaxis] == _SPACES, axis=1)
    at = tf.ragged.range(codes.row_lengths()).with_row_splits_dtype(tf.int64)
    words = tf.where(is_space, _BEYOND, tf.cast(at.values, tf.int32))
    # Their positions, ascending, then none.
    words = tf.sort(_dense(codes.with_values(words)))
    found = tf.searchsorted(words, positions, side="left")
    return tf.gather(words, found, batch_dims=1)


def _dense(ragged):
    """int32 (b, longest row + 1), filled up with what is beyond all."""
    dense = tf.cast(ragged, tf.int32).to_tensor(_BEYOND)
    return tf.pad(dense, [[0, 0], [0, 1]], constant_values=_BEYOND)


def _as(ragged, dense):
    """The entries of a dense tensor that a ragged one has."""
    lengths = ragged.row_lengths()
    return tf.RaggedTensor.from_tensor(dense, lengths=lengths)


def tokens_of_spans(starts, ends, span_starts, span_ends):
    """The tokens that spans of characters touch.

    Args:
        starts, ends: int32 RaggedTensors (b, None), the tokens' characters, ascending
            in a row; `ends` excluded.
        span_starts, span_ends: int (b, s), characters of spans; `span_ends` excluded.

    Returns:
        (first, last), int32 (b, s); `last` excluded. They are equal for a span without
        characters, or one that no token has.
    """
    span_starts, span_ends = (
        tf.cast(one, tf.int32) for one in (span_starts, span_ends)
    )
    first = tf.searchsorted(_dense(ends), span_starts, side="right")
    last = tf.searchsorted(_dense(starts), span_ends, side="left")
    is_empty = (span_ends <= span_starts) | (last <= first)
    return tf.where(is_empty, 0, first), tf.where(is_empty, 0, last)
