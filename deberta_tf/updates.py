"""Gradients of a global batch, from parts and replicas, to one update."""

import contextlib
import functools

import keras
import tensorflow as tf


class Statistics:
    """Means and counts of the updates since the last reset.

    Not a metric of the model's: Keras would have them among the results of `evaluate`.
    """

    def __init__(self):
        self._norms, self._means = {}, {}
        self.num_resets = 0
        self._skipped = keras.metrics.Sum(name="skipped_updates")

    def update(self, name, norm, skipped):
        """Takes in the length of a gradient, and whether it was left out."""
        norm = tf.where(skipped, 0.0, norm)
        counts = 1.0 - tf.cast(skipped, tf.float32)
        _take(self._norms, name, norm, counts)
        # Each replica takes the same in.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._skipped.update_state(tf.cast(skipped, tf.float32) / replicas)

    def take(self, name, value, weight):
        """Takes a scalar of such a weight into the mean of that name."""
        _take(self._means, name, value, weight)

    def mean_of(self, name):
        """The mean of what was taken in, scalar; 0.0 if nothing was."""
        return self._means[name].result() if name in self._means else tf.zeros([])

    def results(self):
        """{name: scalar}, of the updates."""
        metrics = [*self._norms.values(), self._skipped]
        return {metric.name: metric.result() for metric in metrics}

    def reset(self):
        self.num_resets += 1
        for metric in (*self._norms.values(), *self._means.values(), self._skipped):
            metric.reset_state()


def _take(means, name, value, weight):
    if name not in means:
        with tf.init_scope():
            means[name] = keras.metrics.Mean(name=name)
    means[name].update_state(value, sample_weight=weight)


def adopt(optimizer, strategy):
    """Checks that an optimizer leaves to the model what is the model's.

    Under a strategy it gets gradients that are summed already, and its moving averages
    are set replica by replica.

    Raises:
        ValueError: if it clips or accumulates, or is of another strategy.
    """
    # Of a LossScaleOptimizer, the one it wraps.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        if getattr(optimizer, name, None) is not None:
            raise ValueError(
                "Gradient clipping is an argument of compile(global_clipnorm=…), "
                f"not of the optimizer. Received: an optimizer with {name}="
                f"{getattr(optimizer, name)}"
            )
    parts = getattr(optimizer, "gradient_accumulation_steps", None)
    if parts is not None:
        raise ValueError(
            "Accumulation is an argument of compile(gradient_accumulation_steps=…), "
            "not of the optimizer. Received: an optimizer with "
            f"gradient_accumulation_steps={parts}"
        )
    if optimizer is None:
        return
    # Keras's own for TensorFlow can't be called where a replica computes.
    optimizer._overwrite_model_variables_with_average_value = functools.partial(
        _set_to_averages, optimizer
    )
    if strategy is None:
        return
    if optimizer._distribution_strategy is not strategy:
        raise ValueError(
            "The optimizer was made outside of strategy.scope(): make it inside"
        )
    optimizer._all_reduce_sum_gradients = list


def _set_to_averages(optimizer, _=None):
    # What Keras passes are the variables of the model, of which one of several
    # optimizers has a part.
    variables = optimizer._trainable_variables
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(variables, averages, strict=True):
        if average is not None:
            variable.assign(average)


@contextlib.contextmanager
def averaged(optimizers):
    """Within it, the weights are their moving averages, where an optimizer has them."""
    weights = []
    for optimizer in optimizers:
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if optimizer.use_ema and optimizer.built:
            variables = optimizer._trainable_variables
            weights += [(variable, variable.numpy()) for variable in variables]
            _set_to_averages(optimizer)
    try:
        yield
    finally:
        for variable, value in weights:
            variable.assign(value)


def build(optimizer, variables):
    """Makes the variables of an optimizer, outside of the function that is traced."""
    if optimizer is not None and not optimizer.built:
        with tf.init_scope():
            optimizer.build(variables)


def sum_over_replicas(value):
    """The sum of a tensor over all replicas; on one device, the tensor."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def accumulate(gradients_of, observe, data, num_parts, get_variables, keep=None):
    """Sums gradients over the parts of a batch, one part after the other.

    Args:
        gradients_of: callable from a part to (outputs, gradients, some None).
        observe, keep: as `StrategyFit.descend` takes them.
        data: nest of tensors (b, …) or None.
        num_parts: int; divides b.
        get_variables: callable to what the gradients are of.

    Returns:
        (what observe returned, gradients).
    """
    if num_parts == 1:
        outputs, gradients = gradients_of(data)
        return observe(data, outputs), gradients
    parts = tf.nest.map_structure(functools.partial(_split, num_parts), data)
    is_reached = []

    def body(index, sums, kept):
        part = tf.nest.map_structure(
            lambda tensor: None if tensor is None else tensor[index], parts
        )
        outputs, gradients = gradients_of(part)
        is_reached[:] = [gradient is not None for gradient in gradients]
        sums = [
            total if gradient is None else total + gradient
            for total, gradient in zip(sums, gradients, strict=True)
        ]
        seen = observe(part, outputs)
        if keep is not None:
            kept = tf.tensor_scatter_nd_update(kept, [[index]], seen[tf.newaxis])
        return index + 1, sums, kept

    zeros = [tf.zeros(v.shape, v.dtype) for v in get_variables()]
    kept = 0 if keep is None else tf.zeros_like(_split(num_parts, keep))
    _, sums, kept = tf.while_loop(
        lambda index, *_: index < num_parts,
        body,
        (0, zeros, kept),
        maximum_iterations=num_parts,
        parallel_iterations=1,
    )
    gradients = [
        total if reached else None
        for total, reached in zip(sums, is_reached, strict=True)
    ]
    if keep is None:
        return None, gradients
    return tf.reshape(kept, tf.shape(keep)), gradients


def _split(num_parts, tensor):
    """(b, …) to (num_parts, b / num_parts, …)."""
    if tensor is None:
        return None
    shape = tf.shape(tensor)
    shape = tf.concat([[num_parts, shape[0] // num_parts], shape[1:]], axis=0)
    parts = tf.reshape(tensor, shape)
    size = tensor.shape[0] and tensor.shape[0] // num_parts
    parts.set_shape([num_parts, size, *tensor.shape[1:]])
    return parts


def apply(optimizer, gradients, variables, global_clipnorm=None):
    """Updates variables by the gradients of all replicas, summed and clipped.

    An update whose gradients hold a NaN or an infinity is left out: weights, moments
    and averages stay as they are, and only the optimizer's count of steps goes on.

    Args:
        optimizer: Keras optimizer, built. If it scales losses, so are the gradients.
        gradients: list of tensors or None, of this replica.
        variables: list of `keras.Variable`.
        global_clipnorm: float or None.

    Returns:
        (norm, skipped): float32 and bool scalars, the length of the sum before
        clipping and whether the update was left out.
    """
    pairs = zip(gradients, variables, strict=True)
    pairs = [(gradient, v) for gradient, v in pairs if gradient is not None]
    variables = [variable for _, variable in pairs]
    gradients = sum_over_replicas([gradient for gradient, _ in pairs])
    factor = optimizer.scale_loss(tf.ones([]))
    norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients])
    is_finite = tf.math.is_finite(norm)
    if global_clipnorm is not None:
        gradients, _ = tf.clip_by_global_norm(
            gradients, global_clipnorm * factor, use_norm=norm
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # It leaves such updates out itself, and lowers its factor.
        optimizer.apply(gradients, variables)
    else:
        _apply_if(is_finite, optimizer, gradients, variables)
    return norm / factor, tf.logical_not(is_finite)


def _apply_if(is_finite, optimizer, gradients, variables):
    def update(gradients):
        optimizer.apply(gradients, variables)

    def skip():
        optimizer.iterations.assign_add(1)

    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(is_finite, lambda: update(gradients), skip)
        return

    def across_replicas(strategy, is_finite, gradients):
        # The same on all of them.
        is_finite = strategy.experimental_local_results(is_finite)[0]
        each = strategy.extended.call_for_each_replica
        tf.cond(is_finite, lambda: each(update, (gradients,)), lambda: each(skip))

    context = tf.distribute.get_replica_context()
    context.merge_call(across_replicas, (is_finite, gradients))
