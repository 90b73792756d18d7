"""Packing of token ids into the rows that the models take, in core TensorFlow ops."""

import tensorflow as tf

# Rows of dynamic length are filled up to a multiple of it: a server then meets few
# lengths, and keeps buffers for few.
LENGTH_STEP = 32


def pack_strings(tokenizer, texts, sequence_length=None, max_length=None):
    """Tokenises a batch of texts, or of pairs, and packs it; see `pack_segments`.

    Args:
        tokenizer: a `DebertaTokenizer`.
        texts: strings (b,), or a tuple of one or two such. For a single text or
            pair, strings of rank 0: the results lose their first axis.
        sequence_length: int, or None.
        max_length: int, or None.

    Returns:
        dict as `pack_segments` gives it.
    """
    texts = texts if isinstance(texts, tuple) else (texts,)
    segments = [tokenizer.tokenize(text) for text in texts]
    one = not isinstance(segments[0], tf.RaggedTensor)
    if one:
        segments = [tf.RaggedTensor.from_tensor(ids[tf.newaxis]) for ids in segments]
    packed = pack_ids(tokenizer, segments, sequence_length, max_length)
    return {name: x[0] for name, x in packed.items()} if one else packed


def pack_ids(tokenizer, segments, sequence_length=None, max_length=None):
    """`pack_segments` with the special tokens of a tokenizer."""
    return pack_segments(
        segments,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
        sequence_length,
        max_length,
    )


def pack_marks(marks, sequence_length=None, max_length=None):
    """What is known of tokens, at the places that `pack_segments` puts them to.

    Args:
        marks: list of int RaggedTensors (b, None), of the shape of the segments.
        sequence_length: int, or None.
        max_length: int, or None.

    Returns:
        int32 (b, l); -1 for special tokens and padding.
    """
    packed = pack_segments(marks, -1, -1, -1, sequence_length, max_length)
    return packed["token_ids"]


def pack_segments(
    segments, cls_id, sep_id, pad_id, sequence_length=None, max_length=None
):
    """Packs ids as [CLS] A [SEP], or [CLS] A [SEP] B [SEP], and pads.

    What is too long loses tokens from the end of its currently longest segment, of
    B where both are equal (the official code cuts at a random end and puts
    the longer segment first; SPEC 9.1). Only ops that TF Serving has had
    since 2.12.

    Args:
        segments: list of one or two int RaggedTensors (b, None).
        cls_id: int.
        sep_id: int.
        pad_id: int.
        sequence_length: int, tokens a row, a static shape. None: as long as the longest
            row of the batch.
        max_length: int, tokens a row at most; only without `sequence_length`. Rows are
            then as long as the next multiple of `LENGTH_STEP`, or as that.

    Returns:
        dict of int32 tensors (b, l): `token_ids`; `padding_mask`, 1 for tokens and
        0 for padding; `segment_ids`, 1 for B and its [SEP], else 0.
    """
    num_special = len(segments) + 1
    _check_lengths(len(segments), num_special, sequence_length, max_length)
    segments = equally_many([_int32_ids(segment) for segment in segments])
    limit = sequence_length or max_length
    if limit is not None:
        segments = _truncate(segments, limit - num_special)

    batch = segments[0].nrows()
    cls, sep = (
        tf.RaggedTensor.from_tensor(tf.fill([batch, 1], tf.constant(id, tf.int32)))
        for id in (cls_id, sep_id)
    )
    parts = [cls] + [part for segment in segments for part in (segment, sep)]
    tokens = tf.concat(parts, axis=1)
    lengths = tokens.row_lengths()
    token_ids = tokens.to_tensor(pad_id, shape=[segments[0].shape[0], sequence_length])
    width = sequence_length or tf.shape(token_ids)[1]
    if max_length is not None:
        filling = _next_length(width, max_length) - width
        token_ids = tf.pad(token_ids, [[0, 0], [0, filling]], constant_values=pad_id)
        width += filling
    position = tf.range(width, dtype=tf.int64)
    filled = position < lengths[:, tf.newaxis]
    second = filled & (position >= segments[0].row_lengths()[:, tf.newaxis] + 2)
    return {
        "token_ids": token_ids,
        "padding_mask": tf.cast(filled, tf.int32),
        "segment_ids": tf.cast(second, tf.int32),
    }


def _next_length(longest, max_length):
    """How long rows of tokens are made: a row that holds nothing has a length too."""
    steps = (tf.maximum(longest, 1) + LENGTH_STEP - 1) // LENGTH_STEP
    return tf.minimum(steps * LENGTH_STEP, max_length)


def _check_lengths(num_segments, num_special, sequence_length, max_length):
    if num_segments not in (1, 2):
        raise ValueError(f"segments must be one or two. Received: {num_segments}")
    if sequence_length is not None and max_length is not None:
        raise ValueError(
            "max_length is for rows without sequence_length. Received: "
            f"sequence_length={sequence_length}, max_length={max_length}"
        )
    for name, value in (
        ("sequence_length", sequence_length),
        ("max_length", max_length),
    ):
        if value is not None and value < num_special:
            raise ValueError(
                f"{name} must hold the {num_special} special tokens of "
                f"{num_segments} segment(s). Received: {name}={value}"
            )


def equally_many(inputs):
    """Inputs of one batch, which nothing is made of before they are known to be.

    Args:
        inputs: list of tensors or RaggedTensors, (b, …).

    Returns:
        list, the same.

    Raises:
        InvalidArgumentError: when run, if one has more or fewer rows than the first.
    """
    first, *others = [_num_rows(one) for one in inputs]
    checks = [
        tf.debugging.assert_equal(
            one, first, "Inputs must be equally many: the texts of pairs, for example"
        )
        for one in others
    ]
    with tf.control_dependencies([one for one in checks if one is not None]):
        return [tf.identity(one) for one in inputs]


def _num_rows(one):
    if isinstance(one, tf.RaggedTensor):
        return one.nrows(tf.int64)
    return tf.shape(one, out_type=tf.int64)[0]


def _int32_ids(segment):
    return tf.cast(segment, tf.int32).with_row_splits_dtype(tf.int64)


def _truncate(segments, budget):
    """Cuts the longest segment first, to `budget` tokens in all a row."""
    lengths = [segment.row_lengths() for segment in segments]
    if len(segments) == 1:
        kept = [tf.minimum(lengths[0], budget)]
    else:
        # The longer gives way until it is as short as the other; then both do.
        first, second = lengths
        kept = [
            tf.minimum(first, tf.maximum(budget - second, (budget + 1) // 2)),
            tf.minimum(second, tf.maximum(budget - first, budget // 2)),
        ]
    return [_row_beginnings(*pair) for pair in zip(segments, kept, strict=True)]


def _row_beginnings(segment, lengths):
    starts = segment.row_starts()
    index = tf.ragged.range(starts, starts + lengths)
    return index.with_values(tf.gather(segment.values, index.values))
