"""The fused kernel for TPUs as a TensorFlow function with a gradient.

Needs jax (requirements-fused.txt), which nothing imports before the kernel is asked
for.
"""

import functools
import importlib
import importlib.util
import os

import numpy as np
import tensorflow as tf

# Chips whose vector unit rotates each row by another amount; a v4 does not.
CHIPS = ("v5litepod", "v5e", "v6e")
_HEAD_DIMS = (32, 64, 128)
# Up to it the kernel is compiled by tests, and its operands fit the fast memory.
LONGEST = 2048
# What the kernel is traced for: None, the TPUs of this process; "tpu", one that is not
# here (tools.tpu_compile); "cpu", where it runs as plain operations (tests).
TARGET = None


def is_installed():
    """Whether jax is there; it is not imported."""
    return importlib.util.find_spec("jax") is not None


def is_at_hand():
    """Whether this process has jax, and TPUs that can run the kernel.

    The kind of chip is told by the VM, in TPU_ACCELERATOR_TYPE ("v5litepod-8").
    """
    kind = os.environ.get("TPU_ACCELERATOR_TYPE", "").partition("-")[0]
    on_chip = kind in CHIPS and bool(tf.config.list_logical_devices("TPU"))
    return on_chip and is_installed()


def unfit(
    num_heads,
    head_dim,
    shape,
    dtype="bfloat16",
    query_positions=None,
    mask_rank=2,
):
    """Why the kernel can't compute a layer, str; None where it can.

    Args:
        num_heads, head_dim: int.
        shape: (b, l) of queries and keys; None in it is dynamic.
        dtype: str, in which queries and keys are.
        query_positions: not None where queries stand at places of their own.
        mask_rank: int. Rank of the mask; 2 is that of padding.
    """
    if head_dim not in _HEAD_DIMS or num_heads * head_dim % 128:
        return (
            f"heads must be {_HEAD_DIMS} wide, and all of them a multiple of 128; "
            f"found {num_heads} of {head_dim}"
        )
    if None in shape:
        return f"rows and length must be known when it is traced; found {shape}"
    if shape[1] > LONGEST:
        return f"rows may have at most {LONGEST} tokens; found {shape[1]}"
    if dtype not in ("bfloat16", "float32"):
        return f"it computes in bfloat16 or float32; found {dtype}"
    if query_positions is not None:
        return "query_positions are not for it"
    if mask_rank != 2:
        return f"the mask must be one of padding, (b, l); found rank {mask_rank}"
    return None


def fused_attention(
    query,
    key,
    value,
    tables,
    padding_mask,
    relative_positions,
    num_heads,
    scale,
    dropout=0.0,
    seed=None,
):
    """Contexts of disentangled attention, or BERT's, in one kernel.

    Args:
        query, key, value: (b, l, n·h), bfloat16 or float32.
        tables: dict of (r, n·h): "c2p", positions as keys, and "p2c", as queries; those
            of the position terms there are, if any.
        padding_mask: (b, l), or None.
        relative_positions: `RelativePositions`.
        num_heads: int.
        scale: float, of the sum of the terms.
        dropout: float. Rate on the probabilities.
        seed: int (2,), of the dropout; None without.

    Returns:
        (b, l, n·h), zeros where the padding mask is.
    """
    kernel = _kernel()
    batch, length, width = query.shape
    if padding_mask is None:
        padding_mask = tf.ones([tf.shape(query)[0], length])
    keep = tf.cast(tf.cast(padding_mask, "bool"), "float32")
    padding = -length % kernel.LANES
    operands = [_padded(one, padding) for one in (query, key, value)]
    padded = length + padding
    places = {"c2p": padded - 1 - np.arange(2 * padded)}
    places["p2c"] = -places["c2p"]
    # Many distances share a row: their gradients add up in float32.
    rows = {
        term: tf.cast(
            tf.gather(tf.cast(table, "float32"), relative_positions.rows(places[term])),
            query.dtype,
        )
        for term, table in tables.items()
    }
    settings = kernel.Settings(
        num_heads=num_heads,
        head_dim=width // num_heads,
        scale=scale,
        dropout=dropout if seed is not None else 0.0,
        position_terms=tuple(sorted(tables)),
        interpret=TARGET == "cpu",
    )
    if seed is None:
        seed = tf.zeros([2], "int32")
    # Keras has wider ones; their low bits are what differs.
    seed = tf.reshape(tf.cast(seed, "int32"), [1, 2])
    output = _differentiable(settings)(
        *operands, _padded(keep[..., None], padding)[..., 0][:, None], seed, rows
    )
    # Padded queries look nowhere: as `masked_softmax` has it.
    return output[:, :length] * tf.cast(keep, output.dtype)[..., None]


def _padded(x, count):
    return tf.pad(x, [[0, 0], [0, count], [0, 0]]) if count else x


@functools.cache
def _kernel():
    """The module that imports jax."""
    if not is_installed():
        raise ImportError(
            "the fused attention needs jax: pip install -r requirements-fused.txt"
        )
    # TensorFlow has the accelerator: jax only writes the kernel down.
    importlib.import_module("jax").config.update("jax_platforms", "cpu")
    return importlib.import_module("deberta_tf.fused_kernel")


@functools.cache
def _converted(settings):
    """The two passes as TensorFlow functions: (forward, backward)."""
    kernel = _kernel()
    jax2tf = importlib.import_module("jax.experimental.jax2tf")
    platform = "cpu" if settings.interpret else "tpu"
    return [
        jax2tf.convert(
            functools.partial(one, settings=settings),
            native_serialization_platforms=(platform,),
            # It is traced where no TPU is, too.
            native_serialization_disabled_checks=[
                jax2tf.DisabledSafetyCheck.platform()
            ],
            with_gradient=False,
        )
        for one in (kernel.forward, kernel.backward)
    ]


@functools.cache
def _differentiable(settings):
    forward, backward = _converted(settings)
    terms = settings.position_terms

    def attention(query, key, value, keep, seed, rows):
        @tf.custom_gradient
        def run(query, key, value, *tables):
            named = dict(zip(terms, tables, strict=True))
            output, logarithms = forward(query, key, value, named, keep, seed)

            def gradients(upstream):
                *own, d_tables = backward(
                    query, key, value, named, keep, seed, logarithms, upstream
                )
                return *own, *(
                    tf.cast(d_tables[term], table.dtype)
                    for term, table in named.items()
                )

            return output, gradients

        return run(query, key, value, *(rows[term] for term in terms))

    return attention
