"""What both passes of the fused kernel make of a tile of scores (Pallas, for TPUs).

The relative shift is a rotation in registers, row a by a columns more. A pair of heads
shares the 128 lanes of a register where a head is 64 wide.

Axes in comments: `t` positions of a tile.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# Positions of a tile of scores, at most: 512 x 512 in float32 are 1 MiB.
LARGEST_TILE = 512
# Where a mask forbids a key. Finite, so that differences of two are no NaN.
NEVER = -1e30


def tile_of(length):
    """Positions of a tile: the largest that divides the length."""
    sizes = range(LARGEST_TILE, 0, -LANES)
    return next(size for size in sizes if length % size == 0)


def tile_at(number, tile):
    """The positions of a tile."""
    return pl.ds(_aligned(number * tile), tile)


def parts(tile):
    """Pairs of a number and the slice of LANES positions of a tile."""
    return [(r, slice(r * LANES, (r + 1) * LANES)) for r in range(tile // LANES)]


def loop(count, body, carry=None):
    """`carry = body(number, carry)`, `count` times; a single time without a loop."""
    if count == 1:
        return body(0, carry)
    if carry is None:

        def run(number, nothing):
            body(number, None)
            return nothing

        jax.lax.fori_loop(0, count, run, 0)
        return None
    return jax.lax.fori_loop(0, count, body, carry)


def lanes_of(head, settings):
    """Which lanes are a head's, bool (1, LANES)."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    first = head * settings.head_dim
    return (lanes >= first) & (lanes < first + settings.head_dim)


def scores_of(queries, keys, tables, i, j, length, own):
    """Sum of the terms of a tile, (t, t).

    Args:
        queries: (t, LANES), those of tile i, of one head, zero in other lanes.
        keys: (t, LANES), those of tile j.
        tables: dict of references to (2l, LANES), "c2p" and "p2c".
        i, j: int.
        length: int, l.
        own: bool (1, LANES), the lanes of the head.
    """
    scores = product_by_rows(queries, keys)
    tile = queries.shape[0]
    first = windows(tables, i, j, length)
    if "c2p" in tables:
        scores += jnp.concatenate(
            [
                _shifted(queries[rows], tables["c2p"], first["c2p"], r, tile)
                for r, rows in parts(tile)
            ],
            axis=0,
        )
    if "p2c" in tables:
        keys = jnp.where(own, keys, 0)
        scores += jnp.concatenate(
            [
                _shifted(keys[rows], tables["p2c"], first["p2c"], r, tile).T
                for r, rows in parts(tile)
            ],
            axis=1,
        )
    return scores


def windows(tables, i, j, length):
    """{term: first row of its table for a tile of queries i and keys j}.

    Row `first + t - 1 - a + b` stands for the a-th of the term's own positions and the
    b-th of the others.
    """
    tile = tile_of(length)
    first = {
        "c2p": length - tile + (j - i) * tile,
        "p2c": length - tile + (i - j) * tile,
    }
    return {term: first[term] for term in tables}


def rows_of_window(first, part, tile):
    """The table rows that a part of a tile needs."""
    return pl.ds(_aligned(first + tile - LANES - part * LANES), tile + LANES)


def _shifted(content, table, first, part, tile):
    """(LANES, t): y[a, b] = content[a] · table[... + LANES - 1 - a + b]."""
    rows = table[rows_of_window(first, part, tile), :]
    product = product_by_rows(content, rows)
    turned = pltpu.roll(product, tile + 1, axis=1, stride=1, stride_axis=0)
    return turned[:, :tile]


def _aligned(start):
    return start if isinstance(start, int) else pl.multiple_of(start, LANES)


def dropout_keys(seed, settings):
    """Two int32 keys for each head of the group, of this example."""
    group, example = pl.program_id(0), pl.program_id(1)
    first = example * settings.num_heads + group * settings.heads_a_group
    numbers = [first + head for head in range(settings.heads_a_group)]
    return [(hashed(seed[0, 0] ^ n), hashed(seed[0, 1] + n)) for n in numbers]


def dropout_of(keys, i, j, length, rate):
    """Dropout's factors of a tile, (t, t), 0 or 1 / (1 - rate)."""
    tile = tile_of(length)
    rows = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + i * tile
    columns = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1) + j * tile
    return dropout_factors(rows * length + columns, *keys, rate)


def dropout_factors(place, first, second, rate):
    """0 or 1 / (1 - rate), float32, for each int32 place under two int32 keys.

    A hash: the same bits in both passes and on every device, which the chip's own
    generator would not give.
    """
    bits = hashed(hashed(place ^ first) ^ second)
    share = jax.lax.shift_right_logical(bits, 8)
    return jnp.where(share >= int(rate * 2**24), 1 / (1 - rate), 0.0)


def hashed(x):
    """Mixes the bits of int32 numbers.

    Source: the constants of `lowbias32` (Wellons, "Prospecting for Hash Functions").
    """
    shift = jax.lax.shift_right_logical
    x = (x ^ shift(x, 16)) * jnp.int32(0x7FEB352D)
    x = (x ^ shift(x, 15)) * jnp.int32(0x846CA68B - 2**32)
    return x ^ shift(x, 16)


def as_row(column):
    """(t, 1) -> (1, t)."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[0:1, :]


def as_column(row):
    """(1, t) -> (t, 1)."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, 0:1]


def product(one, two):
    """one @ two, in float32."""
    return _dot(one, two, ((1,), (0,)))


def product_by_rows(one, two):
    """one @ two.T"""
    return _dot(one, two, ((1,), (1,)))


def product_by_columns(one, two):
    """one.T @ two"""
    return _dot(one, two, ((0,), (0,)))


def _dot(one, two, axes):
    return jax.lax.dot_general(
        one, two, (axes, ((), ())), preferred_element_type=jnp.float32
    )
