"""The optimizers of DeBERTa: learning-rate schedule, state, and what decays."""

import math
import re

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


def layer_rates(num_layers, decay):
    """What the learning rate is multiplied by, layer for layer.

    The head has the rate itself, the last block `decay` times it, each block below that
    `decay` times its upper neighbour's, and the embeddings, with the table of relative
    positions, that of a block below the first.

    Args:
        num_layers: int, blocks of the encoder.
        decay: float in (0, 1].

    Returns:
        list of (regular expression of variable paths, float), as `adamw` takes it.

    Source: Howard & Ruder 2018 (arXiv 1801.06146), section 3.2.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1]. Received: {decay}")
    blocks = [
        (rf"(^|/)encoder/block_{i}/", decay ** (num_layers - i))
        for i in range(num_layers)
    ]
    below = decay ** (num_layers + 1)
    shared = [(r"(^|/)embeddings/", below), (r"(^|/)encoder/(?!block_)", below)]
    return [*blocks, *shared]


class RatesOfVariables:
    """Mixin of a Keras optimizer: variables that move at a share of the learning rate.

    Their weight decay is that share too.

    Args:
        rates: list of (regular expression, float): what the rate is multiplied by for
            variables whose paths it is found in, the first that is. Others: 1.
    """

    def __init__(self, *args, rates=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = [(pattern, float(factor)) for pattern, factor in rates]
        for pattern, factor in self.rates:
            if not 0 <= factor < math.inf:
                raise ValueError(
                    "rates must be finite and at least 0. "
                    f"Received: {factor} for {pattern!r}"
                )

    def build(self, variables):
        super().build(variables)
        self._factors = [self._factor(variable.path) for variable in variables]

    def _factor(self, path):
        found = (factor for pattern, factor in self.rates if re.search(pattern, path))
        return next(found, 1.0)

    def factor_of(self, variable):
        """What the learning rate is multiplied by for one of the variables."""
        return self._factors[self._get_variable_index(variable)]

    def own_rate(self, variable, learning_rate):
        """The learning rate of a variable, which is decayed by it first."""
        rate = tf.cast(learning_rate, variable.dtype) * self.factor_of(variable)
        if self.weight_decay is not None and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        return rate

    def _apply_weight_decay(self, variables):
        """Nothing for Keras to do: `own_rate` has done it."""

    def get_config(self):
        return {**super().get_config(), "rates": self.rates}


@keras.saving.register_keras_serializable("deberta_tf")
class AdamW(RatesOfVariables, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`, with rates of variables, see `RatesOfVariables`."""

    def update_step(self, gradient, variable, learning_rate):
        rate = self.own_rate(variable, learning_rate)
        super().update_step(gradient, variable, rate)


def adamw(
    learning_rate,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    average_decay=None,
    rates=(),
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
        rates: list of (regular expression, float), as `layer_rates` makes it: of
            variables that move at a share of the learning rate.

    Returns:
        `AdamW`.

    Source: SPEC 6.5.
    """
    optimizer = AdamW(
        learning_rate,
        rates=rates,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        use_ema=average_decay is not None,
        ema_momentum=0.99 if average_decay is None else average_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer


def adafactor(learning_rate, weight_decay=0.01, average_decay=None, rates=()):
    """Adafactor that decays neither biases nor layer norms: a state of next to nothing.

    Args:
        learning_rate, weight_decay, average_decay, rates: as `adamw` takes them; steps
            are of the same length.

    Returns:
        `Adafactor`.
    """
    optimizer = Adafactor(
        learning_rate,
        rates=rates,
        weight_decay=weight_decay,
        use_ema=average_decay is not None,
        ema_momentum=0.99 if average_decay is None else average_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer


@keras.saving.register_keras_serializable("deberta_tf")
class Adafactor(RatesOfVariables, keras.optimizers.Optimizer):
    """Adam without first moments, and with second moments of rows and columns alone.

    Of a matrix it keeps a number for each row and column, of a vector one for each
    element. Keras's `Adafactor` (3.15) keeps a variable as large as the matrix beside
    them, makes each step relative to the size of what it moves, and never longer than
    1 / sqrt(step): the settings of AdamW do not serve there.

    Args:
        learning_rate: float or Keras schedule. At most the root mean square of a step,
            of a matrix or vector (times `clip_threshold`).
        beta_2_decay: float. Moments keep 1 - step ** beta_2_decay of what they were.
        epsilon: float, added to squares of gradients.
        clip_threshold: float. Root mean square over which an update is scaled down.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235), algorithm 4 with steps that are not
    relative.
    """

    def __init__(
        self,
        learning_rate=1e-4,
        beta_2_decay=-0.8,
        epsilon=1e-30,
        clip_threshold=1.0,
        name="adafactor",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_2_decay = beta_2_decay
        self.epsilon = epsilon
        self.clip_threshold = clip_threshold

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._moments = [
            [
                self.add_variable(shape, dtype=variable.dtype, name=name)
                for shape, name in _moment_shapes(variable.shape)
            ]
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        rate = self.own_rate(variable, learning_rate)
        moments = self._moments[self._get_variable_index(variable)]
        gradient = tf.cast(gradient, variable.dtype)
        kept = 1.0 - tf.pow(tf.cast(self.iterations + 1, tf.float32), self.beta_2_decay)
        kept = tf.cast(kept, variable.dtype)
        squares = tf.square(gradient) + self.epsilon
        # Those of rows are means over columns.
        axes = [None] if len(moments) == 1 else [-1, -2]
        for moment, axis in zip(moments, axes, strict=True):
            new = squares if axis is None else tf.reduce_mean(squares, axis)
            self.assign(moment, kept * moment + (1.0 - kept) * new)
        if len(moments) == 1:
            update = gradient * tf.math.rsqrt(moments[0].value)
        else:
            rows, columns = (moment.value for moment in moments)
            # Factor by factor: of rows without a gradient the product can fall to 0.
            shares = rows / tf.reduce_mean(rows, axis=-1, keepdims=True)
            update = gradient * tf.math.rsqrt(shares)[..., None]
            update *= tf.math.rsqrt(columns)[..., None, :]
        size = tf.sqrt(tf.reduce_mean(tf.square(update)))
        update /= tf.maximum(1.0, size / self.clip_threshold)
        self.assign_sub(variable, rate * update)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_2_decay": self.beta_2_decay,
            "epsilon": self.epsilon,
            "clip_threshold": self.clip_threshold,
        }


def _moment_shapes(shape):
    """[(shape, name)] of the second moments of a parameter."""
    if len(shape) < 2:
        return [(shape, "moments")]
    return [(shape[:-1], "row_moments"), (shape[:-2] + shape[-1:], "column_moments")]
