"""Dropout that differs between replicas and can be computed a second time."""

import contextlib

import keras
import tensorflow as tf

# Between the seeds of two replicas. A prime that does not divide 2^31 - 2: the seeds
# of any number of replicas differ modulo that.
REPLICA_STRIDE = 1_000_003
# Between those of two draws of one layer, of one seed; likewise.
DRAW_STRIDE = 7_368_787


class ReplicaSeedGenerator(keras.random.SeedGenerator):
    """A seed generator whose seeds differ between the replicas of a strategy.

    Its state is the same on all replicas, and goes on alike; on one device the seeds
    are those of Keras.
    """

    _given = None
    _draws = 0

    def next(self, ordered=True):
        if self._given is not None:
            # A layer that draws more than once gets another each time.
            step = [self._draws * DRAW_STRIDE, 0]
            self._draws += 1
            return self._given + tf.cast(step, self._given.dtype)
        return of_replica(super().next(ordered))

    @contextlib.contextmanager
    def giving(self, seed):
        """Within it, `next` starts from `seed`, drawn before; the state stays."""
        before = self._given, self._draws
        self._given, self._draws = seed, 0
        try:
            yield
        finally:
            self._given, self._draws = before


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

    The mask is that of float32 whatever the dtype.

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
        if not training or self.rate == 0:
            return inputs
        # A uniform draw of bfloat16 is one of 128 numbers: a rate of 0.001 would be
        # 0.008, and 1 / (1 - rate), rounded, is no longer what keeps the mean.
        wide = tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        dropped = keras.random.dropout(wide, self.rate, seed=self.seed_generator)
        return tf.cast(dropped, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}
