"""Disentangled attention as one kernel for TPUs, forward and backward (Pallas).

Nothing of the size of the scores reaches the chip's main memory. Heads share the 128
lanes of a register where they are narrower, so operands keep the layout of the
projections, (b, l, n·h), and nothing is transposed.

Lengths are multiples of 128 (`LANES`) here. Axes in comments: `b` example, `l`
position, `n` head, `h` head width.

This and the modules that it is made of, `fused_tiles`, `fused_forward` and
`fused_backward`, are the only ones that import jax; `fused_attention` loads it where it
is asked for.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_tf.fused_backward import backward_kernel
from deberta_tf.fused_forward import forward_kernel
from deberta_tf.fused_tiles import LANES

# Of the chip's fast memory; a v5e and a v6e have 128 MiB.
MEMORY_LIMIT = 100 * 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a kernel is compiled for.

    Args:
        num_heads: int.
        head_dim: int, 32, 64 or 128; `num_heads * head_dim` a multiple of 128.
        scale: float, of the sum of the terms.
        dropout: float. Rate on the probabilities.
        position_terms: tuple of "c2p" and "p2c", or empty.
        interpret: bool. Run it as plain operations, on any device.
    """

    num_heads: int
    head_dim: int
    scale: float
    dropout: float = 0.0
    position_terms: tuple = ("c2p", "p2c")
    interpret: bool = False

    @property
    def heads_a_group(self):
        """Heads that share the lanes of a register."""
        return LANES // self.head_dim

    @property
    def groups(self):
        return self.num_heads // self.heads_a_group


def forward(query, key, value, tables, keep, seed, settings):
    """Contexts of all heads, and what the backward pass needs of the softmax.

    Args:
        query, key, value: (b, l, n·h), bfloat16 or float32.
        tables: dict of (2l, n·h), in the dtype of `query`: "c2p", row u stands for
            distance l - 1 - u, and "p2c", row u for distance u - (l - 1); those of
            `settings.position_terms`. The last row fills up.
        keep: float32 (b, 1, l), 1 where a key may be looked at, else 0.
        seed: int32 (1, 2), of the dropout.
        settings: `Settings`.

    Returns:
        (b, l, n·h) as `query`, and float32 (b, groups, heads_a_group, l): the
        logarithm of each softmax's denominator. Without any key a row gives zeros.
    """
    batch, length, _ = query.shape
    shapes = _shapes(batch, length, settings)
    terms = [tables[term] for term in settings.position_terms]
    return pl.pallas_call(
        functools.partial(forward_kernel, length=length, settings=settings),
        grid=(settings.groups, batch),
        in_specs=[
            shapes["seed"],
            shapes["keep"],
            *[shapes["rows"]] * 3,
            *[shapes["table"]] * len(terms),
        ],
        out_specs=[shapes["rows"], shapes["logarithms"]],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            _logarithms_shape(batch, length, settings),
        ],
        interpret=settings.interpret,
        name="disentangled_attention",
        compiler_params=_parameters("parallel"),
    )(seed, keep, query, key, value, *terms)


def backward(query, key, value, tables, keep, seed, logarithms, upstream, settings):
    """Gradients of `forward`'s first result.

    Args:
        query, key, value, tables, keep, seed, settings: as `forward` takes them.
        logarithms: what `forward` gave.
        upstream: (b, l, n·h), gradient of the output.

    Returns:
        (d_query, d_key, d_value), shaped as they are, and a dict of float32
        (2l, n·h), summed over the batch: those of the tables.
    """
    batch, length, width = query.shape
    shapes = _shapes(batch, length, settings)
    terms = [tables[term] for term in settings.position_terms]
    table_shape = jax.ShapeDtypeStruct((2 * length, width), jnp.float32)
    scratch = pltpu.VMEM((length, LANES), jnp.float32)
    found = pl.pallas_call(
        functools.partial(backward_kernel, length=length, settings=settings),
        grid=(settings.groups, batch),
        in_specs=[
            shapes["seed"],
            shapes["keep"],
            *[shapes["rows"]] * 4,
            shapes["logarithms"],
            *[shapes["table"]] * len(terms),
        ],
        out_specs=[*[shapes["rows"]] * 3, *[shapes["table"]] * len(terms)],
        out_shape=[
            *[jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3,
            *[table_shape] * len(terms),
        ],
        scratch_shapes=[scratch] * 3,
        interpret=settings.interpret,
        name="disentangled_attention_gradient",
        # The gradients of the tables add up from one example to the next.
        compiler_params=_parameters("arbitrary"),
    )(seed, keep, query, key, value, upstream, logarithms, *terms)
    return *found[:3], dict(zip(settings.position_terms, found[3:], strict=True))


def _shapes(batch, length, settings):
    """What of each operand a step of the grid, a group of an example, works on."""
    none = None
    together = settings.heads_a_group
    return {
        "seed": pl.BlockSpec(memory_space=pltpu.SMEM),
        "keep": pl.BlockSpec((none, 1, length), lambda g, b: (b, 0, 0)),
        "rows": pl.BlockSpec((none, length, LANES), lambda g, b: (b, 0, g)),
        "table": pl.BlockSpec((2 * length, LANES), lambda g, b: (0, g)),
        "logarithms": pl.BlockSpec(
            (none, none, together, length), lambda g, b: (b, g, 0, 0)
        ),
    }


def _logarithms_shape(batch, length, settings):
    shape = (batch, settings.groups, settings.heads_a_group, length)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _parameters(over_batch):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", over_batch), vmem_limit_bytes=MEMORY_LIMIT
    )
