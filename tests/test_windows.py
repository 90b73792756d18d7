"""Windows of long texts, against slices of lists."""

import math

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import windows


class Specials:
    """What `pack_windows` asks of a tokenizer."""

    cls_token_id, sep_token_id, pad_token_id = 1, 2, 0


FIXED = [[11, 12], [], [13] * 9]
LONG = [list(range(100, 117)), [200], []]


def sliced(fixed, text, length, overlap):
    """(first token of each window, its tokens), one after the other."""
    room = length - 3 - min(len(fixed), (length - 3) // 2)
    step = room - min(overlap, room // 2)
    count = 1 + max(0, math.ceil((len(text) - room) / step))
    return [(i * step, text[i * step : i * step + room]) for i in range(count)]


@pytest.mark.parametrize("windowed_first", [False, True])
@pytest.mark.parametrize("overlap", [0, 2, 90])
def test_windows_are_slices_that_overlap(overlap, windowed_first):
    packed = windows.pack_windows(
        Specials,
        tf.ragged.constant(FIXED, tf.int32),
        tf.ragged.constant(LONG, tf.int32),
        overlap,
        sequence_length=11,
        windowed_first=windowed_first,
    )
    rows, tokens, examples = [], [], []
    for number, (fixed, text) in enumerate(zip(FIXED, LONG, strict=True)):
        fixed = fixed[:4]
        for first, window in sliced(fixed, text, 11, overlap):
            at = list(range(first, first + len(window)))
            parts = [(fixed, [-1] * len(fixed)), (window, at)]
            (a, a_at), (b, b_at) = parts[::-1] if windowed_first else parts
            row, token = [1, *a, 2, *b, 2], [-1, *a_at, -1, *b_at, -1]
            filling = 11 - len(row)
            rows.append(row + [0] * filling)
            tokens.append(token + [-1] * filling)
            examples.append(number)
    assert packed["token_ids"].numpy().tolist() == rows
    assert packed["token"].numpy().tolist() == tokens
    assert packed["example"].numpy().tolist() == examples


@pytest.mark.parametrize(("first", "last"), [(0, 1), (4, 7), (7, 9), (16, 17)])
def test_the_chosen_window_holds_the_span(first, last):
    packed = windows.pack_windows(
        Specials,
        tf.ragged.constant([[11, 12]], tf.int32),
        tf.ragged.constant(LONG[:1], tf.int32),
        3,
        sequence_length=11,
        choose=lambda steps, rooms: windows.window_of([first], [last], steps, rooms),
    )
    start, end = windows.positions_of(
        packed["token"], tf.constant([[first]]), tf.constant([[last]])
    )
    (row,) = packed["token_ids"].numpy().tolist()
    assert row[start.numpy()[0, 0] : end.numpy()[0, 0]] == LONG[0][first:last]


def test_rows_have_a_static_shape_where_each_example_has_one():
    @tf.function(
        input_signature=[
            tf.RaggedTensorSpec([2, None], tf.int32, row_splits_dtype="int64")
        ]
    )
    def pack(ragged):
        packed = windows.pack_windows(
            Specials,
            ragged,
            ragged,
            2,
            sequence_length=9,
            choose=lambda steps, rooms: 0 * steps,
        )
        assert packed["token_ids"].shape == (2, 9)
        return packed["token_ids"]

    assert pack(tf.ragged.constant([[5], [6, 7]], tf.int32)).shape == (2, 9)


def test_a_span_that_is_cut_has_no_positions():
    token = tf.constant([[-1, 3, 4, 5, -1]])
    start, end = windows.positions_of(
        token, tf.constant([[3, 5, 2, 0]]), tf.constant([[5, 7, 4, 0]])
    )
    assert start.numpy().tolist() == [[1, 0, 0, 0]]
    assert end.numpy().tolist() == [[3, 0, 0, 0]]


@pytest.mark.parametrize("max_length", [1, 3, 9])
def test_the_best_spans_are_those_of_all_pairs(max_length):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 7, 2)).astype("float32")
    allowed = rng.random((4, 7)) < 0.8
    allowed[:, 2] = True
    start, end, score = windows.best_spans(logits, allowed, max_length, count=3)
    for row in range(4):
        spans = sorted(
            (-(logits[row, i, 0] + logits[row, j, 1]), i, j + 1)
            for i in range(7)
            for j in range(i, min(7, i + max_length))
            if allowed[row, i] and allowed[row, j]
        )[:3]
        there = slice(len(spans))
        np.testing.assert_allclose(score[row, there], [-s[0] for s in spans], rtol=1e-6)
        assert start[row, there].numpy().tolist() == [s[1] for s in spans]
        assert end[row, there].numpy().tolist() == [s[2] for s in spans]
        assert np.all(score[row, len(spans) :] < -1e8)


def test_the_best_row_of_an_example_is_the_first_of_equal_ones():
    scores, example = [1.0, 3.0, 3.0, -5.0, 2.0, 7.0], [0, 0, 0, 1, 2, 2]
    rows = windows.best_rows(tf.constant(scores), tf.constant(example))
    assert rows.numpy().tolist() == [1, 3, 5]
