"""Running blocks as functions of their weights: once more, or in a loop."""

import contextlib

import keras
import tensorflow as tf

from deberta_tf.dropout import ReplicaSeedGenerator


def recomputed(block, x, table, mask):
    """Runs a block in training, keeping its input alone for the backward pass.

    Seeds are drawn before, so that the backward pass drops out what the forward pass
    did; a function of tensors, so that no variable is read inside.

    Args:
        block: `DebertaEncoderBlock`, built.
        x: (b, l, hidden).
        table: (rows, hidden), the relative table, or None.
        mask: bool (b, l) or (b, l, l).

    Returns:
        (b, l, hidden), what `block` returns.

    Source: Chen et al. 2016 (arXiv 1604.06174).
    """
    seeds = [generator.next() for generator in seed_generators(block)]
    weights = [tf.convert_to_tensor(v.value) for v in block.weights]
    return _recomputed(block, weights, seeds, x, table, mask)


def _recomputed(block, weights, seeds, x, table, mask):
    def run(x, *others):
        # What has no gradient, or is None, can't be an argument.
        own, tables = others[: len(weights)], others[len(weights) :]
        table = tables[0] if tables else None
        return apply_block(block, own, seeds, x, table, mask, training=True)

    tables = [] if table is None else [tf.convert_to_tensor(table)]
    return _run_again(run, x, *weights, *tables)


def _run_again(run, *inputs):
    """`run(*inputs)`, whose backward pass begins by running it once more.

    `tf.recompute_grad` does so too, but ties what it computes again to the gradient by
    `x == x` of a bool, which the TPU's compiler knows to be true: it then finds the
    same computation twice, and keeps the first.
    """
    if tf.executing_eagerly():
        # No compiler, and nothing else keeps the first one's tensors out of a tape.
        return tf.recompute_grad(run)(*inputs)

    @tf.custom_gradient
    def once(*inputs):
        def gradients(upstream):
            again = [after(one, upstream) for one in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                output = run(*again)
            return tape.gradient(
                output,
                again,
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )

        return run(*inputs), gradients

    return once(*inputs)


def after(tensor, gradient):
    """A tensor as it is, but not there before a gradient is."""
    first = tf.reduce_sum(tf.reshape(gradient, [-1])[:1])
    # 0, but nobody can tell before the gradient is there.
    zero = tf.where(tf.math.is_nan(first), first, tf.zeros_like(first))
    return tensor + tf.cast(zero, tensor.dtype)


def recomputed_layer(layer, call):
    """`call(layer)` in training, run once more for the backward pass.

    Args:
        layer: layer or model, built.
        call: callable from the layer to a tensor; no other variables are in it.

    Returns:
        What `call` returns; the gradient reaches the weights of the layer.
    """
    seeds = [generator.next() for generator in seed_generators(layer)]

    def run(*weights):
        with _having(layer, weights, seeds):
            return call(layer)

    weights = [tf.convert_to_tensor(variable.value) for variable in layer.weights]
    return _run_again(run, *weights)


def scanned(blocks, x, table, mask, training, recompute=False):
    """Runs blocks one after the other in one `tf.while_loop`.

    The loop is compiled once, however many blocks there are; their weights are stacked
    for it, which takes memory for a second copy of them, and of their gradients: of
    matrices in the dtype that the blocks compute in.

    Args:
        blocks: list of `DebertaEncoderBlock`, built, alike but for their weights.
        x, table, mask: as `recomputed` takes them.
        training: bool.
        recompute: bool. Keep the input of each block alone, see `recomputed`.

    Returns:
        list of the blocks' outputs, (b, l, hidden) each.
    """
    first, count = blocks[0], len(blocks)
    columns = zip(*(block.weights for block in blocks), strict=True)
    weights = [_stacked(column, first.compute_dtype) for column in columns]
    seeds = []
    if training:
        drawn = [[one.next() for one in seed_generators(block)] for block in blocks]
        seeds = [tf.stack(column) for column in zip(*drawn, strict=True)]

    def body(index, hidden, outputs):
        own_seeds = [seed[index] for seed in seeds]
        own_weights = [weight[index] for weight in weights]
        if recompute and training:
            hidden = _recomputed(first, own_weights, own_seeds, hidden, table, mask)
        else:
            hidden = apply_block(
                first, own_weights, own_seeds, hidden, table, mask, training
            )
        return index + 1, hidden, outputs.write(index, hidden)

    outputs = tf.TensorArray(x.dtype, size=count, element_shape=x.shape)
    _, _, outputs = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (0, x, outputs),
        maximum_iterations=count,
        parallel_iterations=1,
    )
    return tf.unstack(outputs.stack(), count)


def _stacked(variables, compute_dtype):
    values = [variable.value for variable in variables]
    if len(variables[0].shape) > 1:
        # As layers cast them where they are read; layer norms compute in float32.
        values = [tf.cast(value, compute_dtype) for value in values]
    return tf.stack(values)


def apply_block(block, weights, seeds, x, table, mask, training):
    """A block's output under weights and seeds of one's own.

    Args:
        block: `DebertaEncoderBlock`.
        weights: tensors in the order of `block.weights`.
        seeds: tensors in the order of `seed_generators(block)`; empty: none is drawn.
        x, table, mask: as `recomputed` takes them.
        training: bool.
    """
    with _having(block, weights, seeds):
        return block(
            x, relative_embeddings=table, attention_mask=mask, training=training
        )


@contextlib.contextmanager
def _having(layer, weights, seeds):
    own = zip(layer.weights, weights, strict=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.StatelessScope(state_mapping=list(own)))
        for generator, seed in zip(seed_generators(layer), seeds, strict=False):
            stack.enter_context(generator.giving(seed))
        yield


def seed_generators(layer):
    """The seed generators of a layer and the layers in it."""
    layers = [layer, *layer._flatten_layers(include_self=False)]
    found = [getattr(layer, "seed_generator", None) for layer in layers]
    return [one for one in found if isinstance(one, ReplicaSeedGenerator)]
