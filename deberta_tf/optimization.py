"""The optimizers of DeBERTa: learning-rate schedule, state, and what decays."""

import keras
import tensorflow as tf

# Biases and the scales and offsets of layer norms; names as Keras gives them, with
# the ":0" that TensorFlow's variables carry.
NOT_DECAYED = r"(bias|gamma|beta)(:\d+)?$"


@keras.saving.register_keras_serializable("deberta_tf")
class WarmupLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises linearly over a warm-up, then falls linearly to 0.

    Steps count from 0, so with a warm-up the first update has rate 0, as in the
    official code. From `total_steps` on the rate is 0.

    Args:
        learning_rate: float. The peak.
        total_steps: int. The step at which the rate reaches 0.
        warmup_steps: int. The step at which the peak is reached; 0: no warm-up.
        continuous: bool. False: the official `warmup_linear`, which falls along
            the line from the peak at step 0, and so jumps down by
            `learning_rate * warmup_steps / total_steps` where the warm-up ends.

    Raises:
        ValueError: unless 0 <= warmup_steps < total_steps.

    Source: SPEC 6.5; continuous is the official `warmup_linear_shift`.
    """

    def __init__(
        self, learning_rate, total_steps, warmup_steps=0, continuous=True, name=None
    ):
        super().__init__()
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                "warmup_steps must be at least 0 and below total_steps. Received: "
                f"warmup_steps={warmup_steps}, total_steps={total_steps}"
            )
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.continuous = continuous
        self.name = name

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        start = self.warmup_steps if self.continuous else 0
        rising = step / max(self.warmup_steps, 1)
        falling = (self.total_steps - step) / (self.total_steps - start)
        factor = tf.where(step < self.warmup_steps, rising, tf.maximum(falling, 0.0))
        return self.learning_rate * factor

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "continuous": self.continuous,
            "name": self.name,
        }


def adamw(
    learning_rate,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    average_decay=None,
):
    """AdamW that decays neither biases nor layer norms; tables are decayed.

    Keras corrects the bias of the moments, the official optimizer does not: its
    updates are 3.2 times as long at the first step, 6.6 times around the twelfth,
    1.3 times at step 1000, which a warm-up hides in part. Clipping is an argument
    of a task's `compile`, see `StrategyFit`.

    Args:
        learning_rate: float or Keras schedule.
        weight_decay: float, times the learning rate, as in decoupled decay.
        beta_1, beta_2, epsilon: floats of Adam.
        average_decay: float. Decay a step of the moving average of the weights that
            Keras keeps (`use_ema`); None: it keeps none.

    Returns:
        `keras.optimizers.AdamW`.

    Source: SPEC 6.5.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        use_ema=average_decay is not None,
        ema_momentum=0.99 if average_decay is None else average_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer


def adafactor(learning_rate, weight_decay=0.01, average_decay=None):
    """Adafactor that decays neither biases nor layer norms: a state of next to nothing.

    Args:
        learning_rate: float or Keras schedule. Relative: a step is this share of the
            root mean square of the parameter that it moves, so 100 times AdamW's rate
            is of its order.
        weight_decay: float, times the learning rate.
        average_decay: float, as `adamw` takes it.

    Returns:
        `Adafactor`.
    """
    optimizer = Adafactor(
        learning_rate,
        weight_decay=weight_decay,
        use_ema=average_decay is not None,
        ema_momentum=0.99 if average_decay is None else average_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer


@keras.saving.register_keras_serializable("deberta_tf")
class Adafactor(keras.optimizers.Adafactor):
    """`keras.optimizers.Adafactor`, which keeps no second moments of whole matrices.

    Keras (3.15) keeps the product of row and column means too, in a variable as large
    as the matrix, where its purpose is to do without. The updates are the same.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235).
    """

    def add_variable_from_reference(self, reference_variable, name=None, **kwargs):
        if name == "velocity" and len(reference_variable.shape) > 1:
            return None
        return super().add_variable_from_reference(reference_variable, name, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) < 2:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        rows, columns = self._r[index], self._c[index]
        gradient = tf.cast(gradient, variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)
        kept = 1.0 - tf.pow(step, self.beta_2_decay)
        squares = tf.square(gradient) + self.epsilon_1
        for means, axis in ((rows, -1), (columns, -2)):
            new = tf.reduce_mean(squares, axis=axis)
            self.assign(means, kept * means + (1.0 - kept) * new)
        # Factor by factor: of rows without a gradient the product can fall to 0.
        shares = rows / tf.reduce_mean(rows, axis=-1, keepdims=True)
        update = gradient * tf.math.rsqrt(shares)[..., None]
        update *= tf.math.rsqrt(columns.value)[..., None, :]
        update /= tf.maximum(1.0, self._rms(update) / self.clip_threshold)
        rate = tf.minimum(tf.cast(learning_rate, variable.dtype), tf.math.rsqrt(step))
        scale = tf.maximum(self.epsilon_2, self._rms(variable))
        self.assign_sub(variable, rate * scale * update)
