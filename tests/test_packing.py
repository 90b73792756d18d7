"""Packing against a plain reading of SPEC 9.1, one token at a time."""

import random

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.packing import pack_segments, pack_strings

CLS, SEP, PAD = 1, 2, 0


def packed_row(segments, length):
    """(ids, segment ids) of one row before padding; None: of any length."""
    segments = [list(segment) for segment in segments]
    budget = float("inf") if length is None else length - len(segments) - 1
    while sum(map(len, segments)) > budget:
        # Of equally long ones the last gives way.
        max(reversed(segments), key=len).pop()
    ids, segment_ids = [CLS], [0]
    for number, segment in enumerate(segments):
        ids += [*segment, SEP]
        segment_ids += [number] * (len(segment) + 1)
    return ids, segment_ids


def packed_batch(columns, length, width=None):
    rows = [packed_row(segments, length) for segments in zip(*columns, strict=True)]
    width = width or max(len(ids) for ids, _ in rows)
    shape = (len(rows), width)
    expected = {
        name: np.zeros(shape, np.int32)
        for name in ("token_ids", "padding_mask", "segment_ids")
    }
    expected["token_ids"][:] = PAD
    for row, (ids, segment_ids) in enumerate(rows):
        expected["token_ids"][row, : len(ids)] = ids
        expected["padding_mask"][row, : len(ids)] = 1
        expected["segment_ids"][row, : len(ids)] = segment_ids
    return expected


def random_columns(num_segments, longest, rows=40, seed=0):
    generator = random.Random(seed)
    return [
        [
            [generator.randrange(3, 99) for _ in range(generator.randint(0, longest))]
            for _ in range(rows)
        ]
        for _ in range(num_segments)
    ]


def ragged(columns):
    return [tf.ragged.constant(column, tf.int32, ragged_rank=1) for column in columns]


def assert_equal(packed, expected):
    for name, value in expected.items():
        assert packed[name].dtype == tf.int32
        np.testing.assert_array_equal(packed[name], value, err_msg=name)


@pytest.mark.parametrize("num_segments", [1, 2])
@pytest.mark.parametrize("length", [3, 4, 7, 12, 40])
def test_rows_of_a_fixed_length_follow_the_plain_reading(num_segments, length):
    columns = random_columns(num_segments, longest=14)
    packed = pack_segments(ragged(columns), CLS, SEP, PAD, length)
    assert_equal(packed, packed_batch(columns, length, width=length))


@pytest.mark.parametrize("num_segments", [1, 2])
def test_rows_without_a_length_are_as_long_as_the_longest(num_segments):
    columns = random_columns(num_segments, longest=14, seed=1)
    packed = pack_segments(ragged(columns), CLS, SEP, PAD)
    assert_equal(packed, packed_batch(columns, length=None))


@pytest.mark.parametrize("num_segments", [1, 2])
@pytest.mark.parametrize(("max_length", "width"), [(3, 3), (9, 9), (100, 32)])
def test_rows_up_to_a_length_are_of_a_step_or_of_that(num_segments, max_length, width):
    columns = random_columns(num_segments, longest=14, seed=1)
    packed = pack_segments(ragged(columns), CLS, SEP, PAD, max_length=max_length)
    assert_equal(packed, packed_batch(columns, max_length, width))


@pytest.mark.parametrize(
    ("num_tokens", "width"), [(0, 32), (30, 32), (31, 64), (62, 64), (63, 72)]
)
def test_a_step_is_left_where_no_token_more_fits(num_tokens, width):
    columns = [[[5] * num_tokens, []]]
    packed = pack_segments(ragged(columns), CLS, SEP, PAD, max_length=72)
    assert_equal(packed, packed_batch(columns, 72, width))


def test_two_equally_long_segments_share_the_room_and_the_first_gets_the_odd_token():
    packed = pack_segments(ragged([[[5, 6, 7, 8]], [[9, 10, 11, 12]]]), 1, 2, 0, 8)
    assert packed["token_ids"].numpy().tolist() == [[1, 5, 6, 7, 2, 9, 10, 2]]


def test_padding_takes_the_given_id_and_belongs_to_no_segment():
    packed = pack_segments(ragged([[[5]], [[6]]]), CLS, SEP, 7, 8)
    assert packed["token_ids"].numpy().tolist() == [[1, 5, 2, 6, 2, 7, 7, 7]]
    assert packed["segment_ids"].numpy().tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]


def test_an_empty_batch_gives_empty_rows():
    packed = pack_segments([tf.RaggedTensor.from_row_splits([], [0])], 1, 2, 0, 8)
    assert packed["token_ids"].shape == (0, 8)


@pytest.mark.parametrize("length", [9, None])
def test_eager_and_tf_data_agree(length):
    columns = random_columns(2, longest=14, seed=2)

    def pack(*segments):
        return pack_segments(list(segments), CLS, SEP, PAD, length)

    rows = tf.data.Dataset.from_tensor_slices(tuple(ragged(columns))).batch(40)
    (in_graph,) = rows.map(pack)
    assert_equal(in_graph, pack(*ragged(columns)))


def test_shapes_are_static_in_tf_data():
    class Letters:
        cls_token_id, sep_token_id, pad_token_id = CLS, SEP, PAD

        def tokenize(self, texts):
            letters = tf.strings.unicode_decode(texts, "UTF-8")
            letters.row_splits.set_shape([texts.shape[0] + 1])
            return letters

    texts = tf.data.Dataset.from_tensors("abc").repeat(8).batch(4, drop_remainder=True)
    packed = texts.map(lambda text: pack_strings(Letters(), (text, text), 16))
    assert {spec.shape for spec in packed.element_spec.values()} == {
        tf.TensorShape([4, 16])
    }


def test_int64_ids_with_int32_row_splits_are_taken():
    segment = tf.RaggedTensor.from_row_splits(
        tf.constant([5, 6], tf.int64), tf.constant([0, 2], tf.int32)
    )
    packed = pack_segments([segment], CLS, SEP, PAD)
    assert packed["token_ids"].dtype == tf.int32
    assert packed["token_ids"].numpy().tolist() == [[1, 5, 6, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 2}, "must hold the 3 special tokens .* sequence_length=2"),
        ({"max_length": 1}, "must hold the 3 special tokens .* max_length=1"),
        ({"sequence_length": 8, "max_length": 8}, "rows without sequence_length"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack_segments(ragged([[[5]], [[6]]]), CLS, SEP, PAD, **arguments)


def test_three_segments_are_refused():
    with pytest.raises(ValueError, match="one or two. Received: 3"):
        pack_segments(ragged([[[5]], [[6]], [[7]]]), CLS, SEP, PAD, 8)
