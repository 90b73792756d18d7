"""Relative positions: token distances, their log buckets, table rows, and shifts.

Axes in comments: `w` distance (one diagonal of the score matrix), `q` query
position, `k` key position.
"""

import dataclasses

import numpy as np
import tensorflow as tf


def bucket_distances(distances, bucket_size, max_distance):
    """Maps signed token distances to log-spaced buckets.

    Near distances, |d| <= bucket_size // 2, keep a bucket each. Far ones share
    buckets whose width grows logarithmically, so that distance
    `max_distance - 1` lands in the last one; the buckets beyond it are what the
    formula gives.

    Args:
        distances: int array of any shape. Query index minus key index, in
            tokens.
        bucket_size: int. Buckets on each side of zero, k in the paper.
        max_distance: int. Longest distance told apart plus one, in tokens.

    Returns:
        int32 array shaped as `distances`, odd in its argument.

    Source: SPEC 1.3. Computed in float64: in float32 a rounding error moves the
    longest distance of some sizes into a bucket of its own (SPEC 14.2).
    """
    distances = np.asarray(distances)
    length = np.abs(distances)
    middle = bucket_size // 2
    growth = np.log(np.maximum(length, middle) / middle)
    share = growth / np.log((max_distance - 1) / middle)
    far = middle + np.ceil(share * (middle - 1))
    far = np.where(length < max_distance, np.minimum(far, bucket_size - 1), far)
    buckets = np.where(length <= middle, distances, np.sign(distances) * far)
    return buckets.astype("int32")


@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """How a token distance picks its row of the relative table (SPEC 1.2, 1.3).

    Args:
        bucket_size: int. Log buckets on each side of zero; 0 for plain
            distances, clipped to `max_distance`.
        max_distance: int. Longest distance told apart, in tokens.
        clamp_distances: bool. Whether distances beyond `max_distance - 1` share
            its bucket, as in the official code. False: they reach row 0, which
            no published model has trained, as in Hugging Face.
        longest: int. Longest distance that is asked for, see `within`; farther ones,
            which only fill something up, are taken for it. None: there is no such.
    """

    bucket_size: int
    max_distance: int
    clamp_distances: bool = True
    longest: int | None = None

    def __post_init__(self):
        if self.max_distance < 1 or self.bucket_size < 0:
            raise ValueError(
                "max_relative_distance must be at least 1 and bucket_size at "
                f"least 0. Received: max_relative_distance={self.max_distance}, "
                f"bucket_size={self.bucket_size}"
            )
        far = self.max_distance - 1 - self.bucket_size // 2
        if self.bucket_size == 1 or (self.bucket_size and far < 1):
            raise ValueError(
                "bucket_size must be 0, or at least 2 and such that bucket_size // "
                "2 + 1 < max_relative_distance, so that far distances are left to "
                f"share buckets. Received: bucket_size={self.bucket_size}, "
                f"max_relative_distance={self.max_distance}"
            )

    @property
    def num_rows(self):
        """Rows of the relative table, 2k."""
        return 2 * (self.bucket_size or self.max_distance)

    @property
    def takes_any_length(self):
        """Whether a length may be known only when the program runs."""
        return self.clamp_distances or not self.bucket_size

    def rows(self, distances):
        """Table rows of distances known when the program is traced.

        Args:
            distances: int array of any shape, in tokens.

        Returns:
            int32 array shaped as `distances`, in [0, num_rows); of those of `within`.
        """
        if self.longest is None:
            return self._rows_of_all(distances)
        distances = np.clip(distances, -self.longest, self.longest)
        return self._rows_of_all(distances) - self._rows_of_all(-self.longest)

    def _rows_of_all(self, distances):
        distances = np.asarray(distances)
        if self.bucket_size:
            if self.clamp_distances:
                reach = self.max_distance - 1
                distances = np.clip(distances, -reach, reach)
            distances = bucket_distances(distances, self.bucket_size, self.max_distance)
        middle = self.num_rows // 2
        return np.clip(distances + middle, 0, self.num_rows - 1).astype("int32")

    def rows_of(self, distances, longest=None):
        """Table rows of distances known only when the program runs.

        Args:
            distances: int tensor of any shape, in tokens.
            longest: int. The longest distance there can be; needed only where
                distances are not clamped.

        Returns:
            int32 tensor shaped as `distances`, in [0, num_rows).
        """
        reach = self.max_distance
        if not self.takes_any_length:
            if longest is None:
                raise ValueError(
                    "clamp_distances=False needs a sequence length that is known "
                    "when the model is traced. Received: a dynamic length"
                )
            reach = max(reach, longest)
        rows = tf.constant(self.rows(np.arange(-reach, reach + 1)))
        return tf.gather(rows, tf.clip_by_value(distances, -reach, reach) + reach)

    def along(self, first, step, count):
        """Table rows of distances that go on by one step.

        Args:
            first: int, or scalar int tensor where a length is dynamic. First distance.
            step: 1 or -1.
            count: likewise.

        Returns:
            int32 array or tensor, (count,).
        """
        if isinstance(first, int) and isinstance(count, int):
            return self.rows(first + step * np.arange(count))
        return self.rows_of(first + step * tf.range(count))

    def within(self, longest):
        """What distances up to `longest`, either way, need of the table.

        Args:
            longest: int, in tokens.

        Returns:
            (first, count, positions): the rows `first` to `first + count - 1` of the
            table, and the `RelativePositions` that pick among these.
        """
        first, last = (int(row) for row in self.rows([-longest, longest]))
        return first, last - first + 1, dataclasses.replace(self, longest=longest)


def relative_shift(scores, key_length):
    """Reads scores by diagonal as scores by key: y[q, k] = x[q, Q - 1 - q + k].

    A reshape and two slices: no gather, forward or backward.

    Args:
        scores: tensor, (..., Q, Q + key_length). One column a diagonal.
        key_length: int, or scalar int tensor.

    Returns:
        tensor, (..., Q, key_length).

    Source: SPEC 1.10.
    """
    shape = dimensions(scores)
    query_length, width = shape[-2], shape[-1]
    # tf.slice, not Python's brackets: the gradient of a strided slice is several
    # times slower on CPU.
    flat = tf.reshape(scores, [-1, query_length * width])
    flat = tf.slice(flat, [0, query_length - 1], [-1, query_length * (width - 1)])
    rows = tf.reshape(flat, [-1, width - 1])
    rows = tf.slice(rows, [0, 0], [-1, key_length])
    return tf.reshape(rows, [*shape[:-1], key_length])


def window_shift(scores, starts, length):
    """Slices a window out of each row, y[..., k] = x[..., start + k], gather-free.

    Each bit of `start` moves its row by that power of two, or not.

    Args:
        scores: tensor, (n, b, q, w).
        starts: int tensor, (b, q), in [0, length).
        length: int. Width of the window.

    Returns:
        tensor, (n, b, q, length).
    """
    width = scores.shape[-1]
    for bit in range((length - 1).bit_length()):
        step = 1 << bit
        moved = tf.pad(
            tf.slice(scores, [0, 0, 0, step], [-1, -1, -1, width - step]),
            [[0, 0], [0, 0], [0, 0], [0, step]],
        )
        chosen = tf.bitwise.bitwise_and(starts, step) > 0
        scores = tf.where(chosen[None, :, :, None], moved, scores)
    return tf.slice(scores, [0, 0, 0, 0], [-1, -1, -1, length])


def select_rows(values, positions):
    """Rows of each example at given positions, as a product with a one-hot matrix.

    Exact, and no batched gather: on TPU that runs row by row, and its gradient
    is a scatter.

    Args:
        values: tensor, (..., b, l, d); the axes before the batch are broadcast.
        positions: int tensor, (b, p), in [0, l).

    Returns:
        tensor, (..., b, p, d).
    """
    length = dimensions(values)[-2]
    return tf.matmul(tf.one_hot(positions, length, dtype=values.dtype), values)


def dimensions(tensor):
    """The shape of a tensor: ints where known, scalar tensors elsewhere."""
    dynamic = tf.shape(tensor)
    return [
        dynamic[axis] if size is None else size
        for axis, size in enumerate(tensor.shape)
    ]
