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

# Added to what gradients are divided by: a token without one stays.
EPSILON = 1e-6
LOGGED = "adversarial_loss"


class ScaleInvariantFineTuning:
    """Trains a task with scale-invariant fine-tuning (SiFT).

    `fit` is the task's, with another training step; all else, `compile`, `evaluate`,
    `predict` and what is saved, is the task's own and knows nothing of SiFT. The logs
    of training also have `adversarial_loss`, a mean over the distributions that the
    outputs are made of: examples; tokens, but for padding; starts and ends of spans. At
    its least it is twice their entropy, not 0. Sample weights count in the task's loss
    alone.

    The step's three passes drop out independently. Under mixed_bfloat16 a step of 1e-4
    is far below the rounding of the embeddings, and the first perturbation about at it:
    the ascent is all but lost. Take float32, or larger ones.

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
            input, and run it once more: less memory, more time.
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
        self.weight = float(weight)
        self.step_size = step_size
        self.initial_scale = initial_scale
        self.num_steps = num_steps
        self.inner_loss = inner_loss
        self.recompute = recompute
        self.paper = paper
        self.seed = seed
        # The traced step, and the compilation of the task that it is of.
        self._train_function = self._compilation = None
        # The last of its own: what is set from here on is the task's.
        self.task = task

    def __getattr__(self, name):
        if name == "task":  # Not there yet.
            raise AttributeError(name)
        return getattr(self.task, name)

    def __setattr__(self, name, value):
        own = name in self.__dict__ or hasattr(type(self), name)
        if own or "task" not in self.__dict__:
            super().__setattr__(name, value)
        else:
            setattr(self.task, name, value)

    def __call__(self, *args, **kwargs):
        return self.task(*args, **kwargs)

    def fit(self, *args, **kwargs):
        """`task.fit`, by steps of SiFT."""
        with self._in_place():
            return self.task.fit(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """`task.train_on_batch`, by a step of SiFT."""
        with self._in_place():
            return self.task.train_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _in_place(self):
        """Within it, the task trains by SiFT, by a step that is traced once."""
        task, plain = self.task, self.task.train_function
        if self._compilation is not task.compilation:
            self._train_function, self._compilation = None, task.compilation
        task.train_step, task.logs = self.train_step, self.logs
        task.train_function = self._train_function
        try:
            yield
        finally:
            self._train_function, task.train_function = task.train_function, plain
            del task.train_step, task.logs

    def logs(self):
        """{name: scalar}: the task's logs of training, and the adversarial loss."""
        return {**type(self.task).logs(self.task), LOGGED: self.task.mean_of(LOGGED)}

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
            task.take_mean(LOGGED, mean, count)

        task.descend(
            data, forward, observe, task.optimizer, lambda: task.trainable_variables
        )
        return self.logs()

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
        count = tf.reduce_sum(self.task.output_weights(inputs))
        # A mean in the backward pass, and scaled: a sum could overflow in float16, and
        # small gradients be 0.
        factor = self.task.optimizer.scale_loss(tf.ones([]))
        factor = tf.math.divide_no_nan(factor, count)
        for _ in range(self.num_steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(delta)
                outputs = self.task(
                    inputs,
                    training=True,
                    perturb=lambda x, delta=delta: self._moved(x, delta),
                )
                loss = self._divergence(self.inner_loss, outputs, target, inputs)
                loss *= factor
            gradient = tf.math.divide_no_nan(tape.gradient(loss, delta), factor)
            if self.inner_loss == "mse":
                # Of which the official code has the mean, and else the sum.
                gradient = tf.math.divide_no_nan(gradient, count)
            delta += self.step_size * _direction(gradient)
        return delta

    def initial_perturbation(self, inputs):
        """What the ascent begins at, normal and cut at two deviations.

        Another at each step, of each part of a batch and on each replica; that of a
        step is always the same, so that a run goes on as if it had never stopped.
        """
        ids = tf.cast(inputs["token_ids"], tf.int32)
        *rows, length = dimensions(ids)
        count = rows[0] if len(rows) == 1 else rows[0] * rows[1]
        shape = [count, length, self.task.backbone.hidden_dim]
        step = tf.cast(tf.convert_to_tensor(self.task.optimizer.iterations), tf.int32)
        # Nothing else tells parts of one step apart; the sum may wrap around.
        part = tf.reduce_sum(tf.reshape(ids, [-1]) * (1 + tf.range(tf.size(ids))))
        seed = of_replica(tf.stack([self.seed + part, step]))
        noise = tf.random.stateless_normal(shape, seed)
        return self.initial_scale * tf.clip_by_value(noise, -2.0, 2.0)

    def _moved(self, x, delta):
        return (x if self.paper else tf.stop_gradient(x)) + tf.cast(delta, x.dtype)

    def _divergence(self, name, outputs, target, inputs):
        task = self.task
        one, other = (
            task.output_classes(logits, inputs) for logits in (outputs, target)
        )
        weights = task.output_weights(inputs)
        if one.shape.rank != weights.shape.rank + 1:
            raise ValueError(
                f"{type(task).__name__} must weigh each of its distributions: its "
                f"output_classes are {one.shape}, its output_weights {weights.shape}"
            )
        if one.shape[-1] == 1:
            name = "mse"
        return tf.reduce_sum(weights * DIVERGENCES[name](one, other))


def _direction(gradient):
    """Of a gradient, each token's divided by its largest component; 0 if it is not
    finite."""
    longest = tf.reduce_max(tf.abs(gradient), axis=-1, keepdims=True)
    is_finite = tf.math.is_finite(tf.linalg.global_norm([gradient]))
    return tf.where(is_finite, gradient / (longest + EPSILON), 0.0)


def kl(logits, target):
    """Cross-entropy with a fixed target: the divergence, and the target's entropy.

    float32 (…) of logits (…, classes).
    """
    target = tf.nn.softmax(tf.stop_gradient(tf.cast(target, tf.float32)))
    return tf.nn.softmax_cross_entropy_with_logits(target, tf.cast(logits, tf.float32))


def symmetric_kl(one, other):
    """The cross-entropies both ways: divergences, and entropies without gradients."""
    return kl(one, other) + kl(other, one)


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
