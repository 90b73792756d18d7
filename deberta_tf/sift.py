"""Scale-invariant fine-tuning: training that answers small changes of the embeddings.

A second forward pass sees the normalised word embeddings moved a little to where the
outputs change most; what they change counts beside the task's own loss.
"""

import contextlib

import keras
import tensorflow as tf

from deberta_tf import block_loop, updates
from deberta_tf.distribution import StrategyFit
from deberta_tf.dropout import of_replica
from deberta_tf.relative_position import dimensions

# Keeps the longest component of a gradient from being divided by.
EPSILON = 1e-6


class ScaleInvariantFineTuning:
    """Trains a task with scale-invariant fine-tuning (SiFT).

    `fit` is the task's, with another training step; all else, `compile`, `evaluate`,
    `predict` and what is saved, is the task's own and knows nothing of SiFT. The logs
    of training also have `adversarial_loss`, a mean over the distributions that the
    outputs are made of: examples; tokens, but for padding; starts and ends of spans.

    The step's three passes drop out independently. Beside a bfloat16 policy the
    default perturbations are of the size of its rounding: about one part in 200 of the
    normalised embeddings.

    Args:
        task: `DebertaTask`, such as `DebertaTextClassifier`.
        weight: float. What the adversarial loss counts beside the task's; 5 in the
            published recipes, 3 for v3-xsmall.
        step_size: float. Length of a step of ascent: the largest component that it adds
            to the perturbation of a token.
        initial_scale: float. Standard deviation of the perturbation that the ascent
            begins at, which is cut at twice that.
        num_steps: int. Steps of ascent.
        inner_loss: "symmetric_kl", "kl" or "mse", what the ascent climbs. One number
            for each example, as of a regression: always the squared difference.
        recompute: bool. Keep nothing of the clean pass for the backward pass but its
            input, and run it once more: less memory, about an eighth more time.
        paper: bool. Read the paper to the letter where its code differs: the clean pass
            is the model's own, without a normalisation; its outputs are a fixed target;
            the gradient of the perturbed pass reaches the tables.
        seed: int, of the perturbations.

    Raises:
        ValueError: if an argument is not as said, or the task trains by a step of its
            own, as replaced-token detection does.

    Example:

    >>> model = ScaleInvariantFineTuning(classifier, weight=5.0)
    >>> model.compile(optimizer)
    >>> model.fit(dataset)
    >>> classifier.save_to_preset("sentiment")

    Source: SPEC 5; arXiv 2006.03654, section 4, and the official code, of which the
    details are. The squared difference of regressions is that of SMART (arXiv
    1911.03437), where the official code takes a batch for a distribution.
    """

    def __init__(
        self,
        task,
        weight=5.0,
        step_size=1e-4,
        initial_scale=1e-2,
        num_steps=1,
        inner_loss="symmetric_kl",
        recompute=False,
        paper=False,
        seed=0,
    ):
        if type(task).train_step is not StrategyFit.train_step:
            raise ValueError(
                "SiFT needs a task that trains by the common step. Received: "
                f"{type(task).__name__}"
            )
        numbers = {"weight": weight, "step_size": step_size}
        for name, value in {**numbers, "initial_scale": initial_scale}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0. Received: {value}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1. Received: {num_steps}")
        if inner_loss not in DIVERGENCES:
            raise ValueError(
                f"inner_loss must be one of {', '.join(DIVERGENCES)}. "
                f"Received: {inner_loss!r}"
            )
        self.task = task
        self.weight = float(weight)
        self.step_size = step_size
        self.initial_scale = initial_scale
        self.num_steps = num_steps
        self.inner_loss = inner_loss
        self.recompute = recompute
        self.paper = paper
        self.seed = seed

    def __getattr__(self, name):
        if name == "task":  # Not there yet, as when unpickled.
            raise AttributeError(name)
        return getattr(self.task, name)

    def fit(self, *args, **kwargs):
        """`task.fit`, by steps of SiFT."""
        with self._in_place():
            return self.task.fit(*args, **kwargs)

    @contextlib.contextmanager
    def _in_place(self):
        # Keras traces a step once, and keeps it.
        self.task.train_step = self.train_step
        self.task.train_function = None
        try:
            yield
        finally:
            del self.task.train_step
            self.task.train_function = None

    def train_step(self, data):
        """One step: both losses, one update. Returns the logs."""
        task = self.task
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        counted = tf.reduce_sum(task.output_weights(x))
        total, num_rows = updates.sum_over_replicas([task.loss_weight(data), counted])

        def forward(part):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
            y_pred, divergence = self.compare(x)
            loss = task.loss_of(x, y, y_pred, sample_weight, training=True)
            scalar = task.share_of_loss(loss, part, total)
            scalar += self.weight * tf.math.divide_no_nan(divergence, num_rows)
            return scalar, (loss, y_pred, divergence)

        def observe(part, outputs):
            loss, y_pred, divergence = outputs
            task.observe(part, loss, y_pred)
            x, _, _ = keras.utils.unpack_x_y_sample_weight(part)
            count = tf.reduce_sum(task.output_weights(x))
            mean = tf.math.divide_no_nan(divergence, count)
            task.log_mean("adversarial_loss", mean, count)

        task.descend(
            data, forward, observe, task.optimizer, lambda: task.trainable_variables
        )
        return task.logs()

    def compare(self, inputs):
        """The task's outputs in training, and how far a perturbation moves them.

        Args:
            inputs: dict, as the task takes it.

        Returns:
            (outputs, divergence): the outputs of the clean pass, and the float32 sum of
            the divergences of all distributions, each times its weight.
        """
        outputs = self._clean(inputs)
        target = tf.stop_gradient(outputs)
        delta = tf.stop_gradient(self.ascend(inputs, target))

        def perturb(x):
            nonlocal outputs
            x = self._moved(x, delta)
            if self.recompute:
                outputs, x = _in_turn(outputs, x)
            return x

        perturbed = self.task(inputs, training=True, perturb=perturb)
        clean = target if self.paper else outputs
        return outputs, self._divergence("symmetric_kl", perturbed, clean, inputs)

    def _clean(self, inputs):
        perturb = None if self.paper else tf.identity
        if not self.recompute:
            return self.task(inputs, training=True, perturb=perturb)
        return block_loop.recomputed_layer(
            self.task, lambda task: task(inputs, training=True, perturb=perturb)
        )

    def ascend(self, inputs, target):
        """The perturbation, float32 (rows, l, hidden), that moves the outputs most.

        Args:
            inputs: dict, as the task takes it.
            target: the outputs of the clean pass.
        """
        delta = self.initial_perturbation(inputs)
        for _ in range(self.num_steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(delta)
                outputs = self.task(
                    inputs,
                    training=True,
                    perturb=lambda x, delta=delta: self._moved(x, delta),
                )
                loss = self._divergence(self.inner_loss, outputs, target, inputs)
                if self.inner_loss == "mse":
                    # The official code has the mean here, and a sum elsewhere.
                    loss /= tf.reduce_sum(self.task.output_weights(inputs))
                # Else small gradients would be 0 in float16.
                loss = self.task.optimizer.scale_loss(loss)
            delta += self.step_size * self._direction(tape.gradient(loss, delta))
        return delta

    def initial_perturbation(self, inputs):
        """What the ascent begins at, normal and cut at two deviations.

        Another at each step, and on each replica; that of a step is always the same.
        """
        *rows, length = dimensions(inputs["token_ids"])
        count = rows[0] if len(rows) == 1 else rows[0] * rows[1]
        shape = [count, length, self.task.backbone.hidden_dim]
        step = tf.cast(tf.convert_to_tensor(self.task.optimizer.iterations), tf.int32)
        noise = tf.random.stateless_normal(
            shape, of_replica(tf.stack([self.seed, step]))
        )
        return self.initial_scale * tf.clip_by_value(noise, -2.0, 2.0)

    def _moved(self, x, delta):
        return (x if self.paper else tf.stop_gradient(x)) + tf.cast(delta, x.dtype)

    def _direction(self, gradient):
        """Of a gradient, each token's divided by its largest component; 0 if a NaN is
        among them."""
        gradient /= self.task.optimizer.scale_loss(tf.ones([]))
        longest = tf.reduce_max(tf.abs(gradient), axis=-1, keepdims=True)
        is_finite = tf.math.is_finite(tf.linalg.global_norm([gradient]))
        return tf.where(is_finite, gradient / (longest + EPSILON), 0.0)

    def _divergence(self, name, outputs, target, inputs):
        task = self.task
        one, other = (
            task.output_classes(logits, inputs) for logits in (outputs, target)
        )
        if one.shape[-1] == 1:
            name = "mse"
        weights = task.output_weights(inputs)
        return tf.reduce_sum(weights * DIVERGENCES[name](one, other))


def cross_entropy(target, logits):
    """Of softmaxes, the first one fixed: float32 (…) of logits (…, classes)."""
    target = tf.nn.softmax(tf.stop_gradient(tf.cast(target, tf.float32)))
    return tf.nn.softmax_cross_entropy_with_logits(target, tf.cast(logits, tf.float32))


def kl(logits, target):
    """The divergence from a fixed target, but for the target's entropy."""
    return cross_entropy(target, logits)


def symmetric_kl(one, other):
    """The divergences both ways, but for the entropies, which no gradient passes."""
    return cross_entropy(other, one) + cross_entropy(one, other)


def mse(one, other):
    """The mean over classes of the squared differences."""
    one, other = tf.cast(one, tf.float32), tf.cast(other, tf.float32)
    return tf.reduce_mean(tf.math.squared_difference(one, other), axis=-1)


DIVERGENCES = {"symmetric_kl": symmetric_kl, "kl": kl, "mse": mse}


@tf.custom_gradient
def _in_turn(outputs, x):
    """Both as they are; the gradient of the first waits for that of the second.

    So the clean pass is run again when the backward pass of the perturbed one is done,
    and its memory free.
    """

    def gradients(upstream, upstream_x):
        return block_loop.after(upstream, upstream_x), upstream_x

    return (tf.identity(outputs), tf.identity(x)), gradients
