import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.relative_position import (
    RelativePositions,
    bucket_distances,
    relative_shift,
    select_rows,
    window_shift,
)
from tests import reference

SIZES = [(8, 32), (16, 64), (32, 128), (64, 256), (256, 512)]


@pytest.mark.parametrize(("bucket_size", "max_distance"), SIZES)
def test_rows_are_those_of_the_official_code(golden, bucket_size, max_distance):
    tables = np.load(golden / "golden/H1_bucket_tables/tables.npz")
    prefix = f"b{bucket_size}_M{max_distance}."
    positions = RelativePositions(bucket_size, max_distance)
    rows = positions.rows(tables[prefix + "distance"])
    np.testing.assert_array_equal(rows, tables[prefix + "row_official"])


@pytest.mark.parametrize(("bucket_size", "max_distance"), SIZES)
def test_unclamped_rows_are_those_of_hugging_face(golden, bucket_size, max_distance):
    tables = np.load(golden / "golden/H1_bucket_tables/tables.npz")
    prefix = f"b{bucket_size}_M{max_distance}."
    positions = RelativePositions(bucket_size, max_distance, clamp_distances=False)
    rows = positions.rows(tables[prefix + "distance"])
    np.testing.assert_array_equal(rows, tables[prefix + "row_hf"])


@pytest.mark.parametrize(("bucket_size", "max_distance"), [(2, 9), (5, 12), (9, 40)])
@pytest.mark.parametrize("clamp", [True, False])
def test_rows_agree_with_one_distance_at_a_time(bucket_size, max_distance, clamp):
    distances = np.arange(-3 * max_distance, 3 * max_distance)
    positions = RelativePositions(bucket_size, max_distance, clamp)
    expected = [
        reference.table_row(d, bucket_size, max_distance, clamp) for d in distances
    ]
    np.testing.assert_array_equal(positions.rows(distances), expected)


def test_the_longest_distance_fills_the_last_bucket():
    assert bucket_distances(np.array([511, -511]), 256, 512).tolist() == [255, -255]


def test_published_values_of_single_distances():
    distances = np.array([128, 129, 133, 140, 200, 256, 350, 500, 506])
    expected = [128, 129, 132, 137, 169, 192, 221, 254, 255]
    assert bucket_distances(distances, 256, 512).tolist() == expected


def test_buckets_of_all_distances_sum_to_the_published_number():
    assert bucket_distances(np.arange(512), 256, 512).sum() == 87297


def test_plain_distances_reach_row_zero_only_beyond_their_last():
    rows = RelativePositions(0, 4).rows(np.array([-9, -4, -3, 0, 3, 4, 9]))
    assert rows.tolist() == [0, 0, 1, 4, 7, 7, 7]


@pytest.mark.parametrize("bucket_size", [0, 8])
def test_rows_at_run_time_are_those_at_trace_time(bucket_size):
    positions = RelativePositions(bucket_size, 20)
    distances = np.arange(-70, 70)
    rows = positions.rows_of(tf.constant(distances))
    np.testing.assert_array_equal(rows, positions.rows(distances))


@pytest.mark.parametrize("bucket_size", [0, 8])
@pytest.mark.parametrize("longest", [0, 3, 30, 90])
def test_rows_within_a_distance_pick_the_same_of_a_part_of_the_table(
    bucket_size, longest
):
    positions = RelativePositions(bucket_size, 20)
    first, count, within = positions.within(longest)
    distances = np.arange(-longest, longest + 1)
    part = np.arange(positions.num_rows)[first : first + count]
    np.testing.assert_array_equal(
        part[within.rows(distances)], positions.rows(distances)
    )
    # What lies beyond only fills up, and stays within the part.
    beyond = within.rows(np.arange(-200, 200))
    assert (beyond.min(), beyond.max()) == (0, count - 1)


def test_unclamped_rows_of_a_dynamic_length_are_refused():
    positions = RelativePositions(8, 20, clamp_distances=False)
    with pytest.raises(ValueError, match="clamp_distances=False .* dynamic"):
        positions.rows_of(tf.constant([1]))


@pytest.mark.parametrize(
    ("bucket_size", "max_distance"), [(1, 9), (8, 5), (-2, 9), (0, 0)]
)
def test_sizes_without_far_distances_are_refused(bucket_size, max_distance):
    with pytest.raises(ValueError, match=f"bucket_size={bucket_size}"):
        RelativePositions(bucket_size, max_distance)


@pytest.mark.parametrize(
    ("query_length", "key_length"), [(1, 1), (5, 5), (3, 8), (9, 2)]
)
def test_the_shift_reads_diagonals(query_length, key_length):
    x = np.random.default_rng(0).normal(
        size=(2, query_length, query_length + key_length)
    )
    y = relative_shift(tf.constant(x), key_length).numpy()
    for q in range(query_length):
        for k in range(key_length):
            np.testing.assert_array_equal(y[:, q, k], x[:, q, query_length - 1 - q + k])


def test_the_gradient_of_the_shift_goes_back_to_the_diagonals():
    x = tf.Variable(np.zeros((3, 7)))
    weights = np.arange(12.0).reshape(3, 4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(relative_shift(x, 4) * weights)
    expected = np.zeros((3, 7))
    for q in range(3):
        expected[q, 2 - q : 6 - q] = weights[q]
    np.testing.assert_array_equal(tape.gradient(loss, x), expected)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_windows_start_where_they_are_told(length):
    rng = np.random.default_rng(length)
    x = rng.normal(size=(2, 3, 5, 2 * length))
    starts = rng.integers(0, length, (3, 5))
    y = window_shift(tf.constant(x), tf.constant(starts), length).numpy()
    for b in range(3):
        for q in range(5):
            window = x[:, b, q, starts[b, q] : starts[b, q] + length]
            np.testing.assert_array_equal(y[:, b, q], window)


def test_selected_rows_are_the_rows_of_each_example():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 2, 6, 3))
    positions = np.array([[5, 0, 0], [2, 2, 4]])
    rows = select_rows(tf.constant(values), tf.constant(positions)).numpy()
    for b in range(2):
        np.testing.assert_array_equal(rows[:, b], values[:, b, positions[b]])
