"""The order of training rows: every row once an epoch, any step by its number."""

import numpy as np
import pytest
import tensorflow as tf

from trainers import batches


def rows_of(dataset):
    return np.array([row for _, row in dataset.as_numpy_iterator()])


def test_each_epoch_has_every_row_once_though_batches_cross_its_end():
    rows = rows_of(batches.training_rows(10, 4, seed=3, first_step=0, last_step=5))
    assert rows.shape == (5, 4)
    first, second = rows.reshape(2, 10)
    assert sorted(first) == sorted(second) == list(range(10))


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed):
        return rows_of(batches.training_rows(50, 50, seed, 0, 2))

    first, second = order(1)
    other, _ = order(2)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(50))}) == 4


def test_a_run_that_starts_late_gets_the_batches_of_the_whole_run():
    whole = list(batches.training_rows(7, 3, 5, 0, 9).as_numpy_iterator())
    late = list(batches.training_rows(7, 3, 5, 4, 9).as_numpy_iterator())
    np.testing.assert_array_equal(whole[4:], late)
    np.testing.assert_array_equal(late[0][0], [12, 13, 14])


def test_a_batch_may_be_larger_than_the_data():
    (rows,) = rows_of(batches.training_rows(3, 8, 1, 0, 1))
    assert np.bincount(rows).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_the_number_of_batches_is_known_before_they_are_made():
    assert int(batches.training_rows(7, 3, 5, 4, 9).cardinality()) == 5


def test_evaluation_takes_every_row_once_and_fills_the_last_batch_up():
    batched = list(batches.rows_in_order(5, 2).as_numpy_iterator())
    places, rows = np.array(batched).transpose(1, 0, 2)
    assert places.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rows.tolist() == [[0, 1], [2, 3], [4, 4]]


def test_a_shuffle_is_not_a_shift():
    first, second = rows_of(batches.training_rows(100, 100, 0, 0, 2))
    # Neighbours of one epoch are neighbours of the next only by chance.
    pairs = [set(zip(order[:-1], order[1:], strict=True)) for order in (first, second)]
    assert len(pairs[0] & pairs[1]) < 10


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4, 6, 12])
def test_the_hosts_blocks_in_order_are_the_batch(num_hosts):
    def read(host, hosts):
        # 2.4 epochs, so that batches reach over their ends.
        dataset = batches.training_rows(25, 12, 7, 3, 8, host, hosts)
        return [np.stack(pair) for pair in dataset.as_numpy_iterator()]

    whole = read(0, 1)
    parts = [read(host, num_hosts) for host in range(num_hosts)]
    joined = [np.concatenate(blocks, axis=1) for blocks in zip(*parts, strict=True)]
    np.testing.assert_array_equal(joined, whole)
    np.testing.assert_array_equal(
        np.concatenate([n for n, _ in whole]), np.arange(36, 96)
    )
    held_out = [
        np.stack(
            list(batches.rows_in_order(25, 12, host, num_hosts).as_numpy_iterator())
        )
        for host in range(num_hosts)
    ]
    alone = np.stack(list(batches.rows_in_order(25, 12).as_numpy_iterator()))
    np.testing.assert_array_equal(np.concatenate(held_out, axis=2), alone)


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="a batch of 12, 5 hosts"):
        batches.training_rows(25, 12, 7, 0, 1, 0, 5)


def test_a_far_step_is_computed_and_not_counted_up_to():
    far = 10**12
    dataset = batches.training_rows(1000, 8, 7, far, far + 1)
    ((n, row),) = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(n, 8 * far + np.arange(8))
    expected = [int(batches.row_of(tf.constant(one), 1000, 7)) for one in n]
    np.testing.assert_array_equal(row, expected)
