"""Dropout that differs between replicas and can be computed a second time."""

import contextlib

import keras
import tensorflow as tf

# Between the seeds of two replicas. A prime that does not divide 2^31 - 2: the seeds
# of any number of replicas differ modulo that.
REPLICA_STRIDE = 1_000_003


class ReplicaSeedGenerator(keras.random.SeedGenerator):
    """A seed generator whose seeds differ between the replicas of a strategy.

    Its state is the same on all replicas, and goes on alike; on one device the seeds
    are those of Keras.
    """

    _given = None

    def next(self, ordered=True):
        if self._given is not None:
            return self._given
        return of_replica(super().next(ordered))

    @contextlib.contextmanager
    def giving(self, seed):
        """Within it, `next` returns `seed`, drawn before; the state stays."""
        before, self._given = self._given, seed
        try:
            yield
        finally:
            self._given = before


def of_replica(seed):
    """A seed, int (2,), that differs between replicas, of one that is the same on all.

    On one device the same.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
    # Not in the second number, which counts draws: Keras takes seeds modulo
    # 2^31 - 2, so that strides would come round to another replica's draws.
    return seed + tf.stack([replica * REPLICA_STRIDE, tf.zeros_like(replica)])


@keras.saving.register_keras_serializable("deberta_tf")
class Dropout(keras.layers.Layer):
    """`keras.layers.Dropout`, with another mask on each replica.

    Args:
        rate: float in [0, 1]. Share of the entries that are set to zero.

    Raises:
        ValueError: if the rate is outside of [0, 1].
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1]. Received: rate={rate}")
        self.rate = rate
        self.seed_generator = ReplicaSeedGenerator() if rate > 0 else None
        self.supports_masking = True
        self.built = True

    def call(self, inputs, training=None):
        if training and self.rate > 0:
            return keras.random.dropout(inputs, self.rate, seed=self.seed_generator)
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}
