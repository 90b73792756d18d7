"""Texts too long for a row: windows of them, and the spans that their logits choose."""

import tensorflow as tf

from deberta_tf.packing import equally_many, pack_ids, pack_marks

# Below every score: a token that may not begin or end a span.
_NEVER = -1e9

# Windows that a served model reads at once: a context of any length takes no more
# memory than so many rows.
WINDOW_ROWS = 32


def pack_windows(
    tokenizer,
    fixed,
    windowed,
    overlap,
    sequence_length=None,
    max_length=None,
    windowed_first=False,
    choose=None,
):
    """Packs a text that stands in every row beside windows of one that may be long.

    Args:
        tokenizer: `DebertaTokenizer`, for its special ids.
        fixed: int32 RaggedTensor (b, None), ids. Cut to half of a row.
        windowed: int32 RaggedTensor (b, None), ids.
        overlap: int. Tokens of a window that the next one has too, at most half of it.
        sequence_length, max_length: int or None, as `pack_segments` takes them.
        windowed_first: bool. The window is segment A, what is fixed B.
        choose: callable from (steps, rooms), int64 (b,), how far windows are apart and
            what they hold, to the numbers int64 (b,) of one window for each example.
            None: all windows.

    Returns:
        dict of int32 (w, l), as `pack_segments` gives it; and of int32 `example` (w,),
        the row of `windowed` that a window is of, ascending, and `token` (w, l),
        which of its tokens stands where, -1 for others.
    """
    budget = (sequence_length or max_length) - 3
    if budget < 2:
        raise ValueError(
            "Rows must hold 3 special tokens and one of each text. Received: "
            f"sequence_length={sequence_length}, max_length={max_length}"
        )
    fixed, windowed = equally_many([fixed, windowed])
    fixed = fixed[:, : max(budget // 2, 1)]
    rooms = budget - fixed.row_lengths()
    example, at = _cut(windowed, rooms, overlap, choose)
    lengths = {"sequence_length": sequence_length, "max_length": max_length}
    # One for each example keeps the static number of rows.
    beside = tf.gather(fixed, example) if choose is None else fixed
    starts = tf.gather(windowed.row_starts(), tf.gather(example, at.value_rowids()))
    window = at.with_values(tf.gather(windowed.values, starts + at.values))
    packed = pack_ids(tokenizer, _ordered(beside, window, windowed_first), **lengths)
    nothing = beside.with_values(tf.fill(tf.shape(beside.values), -1))
    token = pack_marks(_ordered(nothing, at, windowed_first), **lengths)
    return {**packed, "example": tf.cast(example, tf.int32), "token": token}


def in_chunks(task, inputs):
    """What a task gives of windows, `WINDOW_ROWS` of them at once.

    Args:
        task: model from a dict of tensors to float32 (w, …).
        inputs: dict of tensors (w, …), w known when run.

    Returns:
        tensor (w, …).
    """
    count = tf.shape(next(iter(inputs.values())))[0]

    def add(at, outputs):
        rows = {name: x[at : at + WINDOW_ROWS] for name, x in inputs.items()}
        return at + WINDOW_ROWS, outputs.write(
            at // WINDOW_ROWS, task(rows, training=False)
        )

    outputs = tf.TensorArray(
        tf.float32, size=0, dynamic_size=True, infer_shape=False, element_shape=None
    )
    # Of no windows there is one chunk too, of no rows: it tells the other axes.
    first = add(0, outputs)
    _, outputs = tf.while_loop(
        lambda at, _: at < count, add, first, parallel_iterations=1
    )
    joined = outputs.concat()
    # The loop forgets it, and a server's metadata tell it.
    joined.set_shape(task.output.shape)
    return joined


def _cut(windowed, rooms, overlap, choose):
    """(example (w,), RaggedTensor (w, None) of the tokens of each window), int64."""
    steps = rooms - tf.minimum(tf.cast(overlap, tf.int64), rooms // 2)
    lengths = windowed.row_lengths()
    last = -(-tf.maximum(lengths - rooms, 0) // steps)
    example = tf.range(windowed.nrows())
    if choose is None:
        example = tf.repeat(example, last + 1)
        number = tf.ragged.range(last + 1).values
    else:
        number = tf.clip_by_value(choose(steps, rooms), 0, last)
    starts = number * tf.gather(steps, example)
    ends = tf.minimum(starts + tf.gather(rooms, example), tf.gather(lengths, example))
    at = tf.ragged.range(starts, ends).with_row_splits_dtype(tf.int64)
    if choose is not None:
        at.row_splits.set_shape(windowed.row_splits.shape)
    return example, at


def _ordered(fixed, window, windowed_first):
    return [window, fixed] if windowed_first else [fixed, window]


def window_of(first, last, steps, rooms):
    """The first window that holds the tokens from `first` to `last`, excluded.

    int64 (b,); see `pack_windows`, `choose`. Where they fit in none, it is no matter.
    """
    first, last = tf.cast(first, tf.int64), tf.cast(last, tf.int64)
    return tf.maximum(-(-(last - rooms) // steps), 0)


def positions_of(token, first, last):
    """Where tokens stand in the rows of windows.

    Args:
        token: int32 (w, l), as `pack_windows` gives it.
        first, last: int32 (w, …), tokens of the text; `last` excluded.

    Returns:
        (start, end), int32 (w, …), positions in the row; `end` excluded. Both are 0
        where the row has not all of the tokens, or there are none.
    """
    shape = tf.shape(first)
    rows = tf.shape(token)[0]
    first, last = (tf.reshape(one, [rows, -1, 1]) for one in (first, last))
    row = token[:, tf.newaxis]
    is_in = (row >= first) & (row < last)  # --> shape (w, …, l)
    count = tf.reduce_sum(tf.cast(is_in, tf.int32), axis=-1)
    whole = (count > 0) & (count == (last - first)[..., 0])
    start = tf.argmax(is_in, axis=-1, output_type=tf.int32)
    start = tf.where(whole, start, 0)
    end = tf.where(whole, start + count, 0)
    return tf.reshape(start, shape), tf.reshape(end, shape)


def best_spans(logits, is_candidate, max_length, count=1):
    """The spans of each row whose start and end have the largest sum of logits.

    Args:
        logits: float32 (w, l, 2), of a span's start and its last token.
        is_candidate: bool (w, l), where spans may begin and end.
        max_length: int. Tokens of a span at most.
        count: int. Spans a row.

    Returns:
        (start, end, score): int32 (w, count) positions, `end` excluded, and their
        float32 sums, the largest first; about -1e9 where a row has no more spans.
    """
    logits = tf.where(is_candidate[..., tf.newaxis], logits, _NEVER)
    start, end = logits[..., 0], logits[..., 1]
    length = tf.shape(start)[1]
    padded = tf.pad(end, [[0, 0], [0, max_length - 1]], constant_values=_NEVER)
    shifted = [padded[:, i : i + length] for i in range(max_length)]
    sums = start[..., tf.newaxis] + tf.stack(shifted, axis=-1)
    flat = tf.reshape(sums, [tf.shape(sums)[0], length * max_length])
    scores, places = tf.math.top_k(flat, count)
    first = places // max_length
    return first, first + places % max_length + 1, scores


def best_rows(scores, example):
    """For each example the row of the largest score, the first of equal ones.

    Args:
        scores: float32 (w,).
        example: int32 (w,), ascending from 0, each at least once.

    Returns:
        int32 (b,).
    """
    best = tf.gather(tf.math.segment_max(scores, example), example)
    count = tf.shape(scores)[0]
    return tf.math.segment_min(
        tf.where(scores == best, tf.range(count), count), example
    )
