"""Disentangled attention as one kernel for TPUs, forward and backward (Pallas).

Nothing of the size of the scores reaches the chip's main memory: the relative shift is
a rotation in registers, row a by a columns more. A pair of heads shares the 128 lanes
of a register where a head is 64 wide, so operands keep the layout of the projections,
(b, l, n·h), and nothing is transposed.

Lengths are multiples of 128 (`LANES`) here. Axes in comments: `b` example, `l`
position, `n` head, `h` head width, `t` positions of a tile, `w` distance.

The only module that imports jax; `fused_attention` loads it where it is asked for.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# Positions of a tile of scores, at most: 512 x 512 in float32 are 1 MiB.
LARGEST_TILE = 512
# Where a mask forbids a key. Finite, so that differences of two are no NaN.
NEVER = -1e30
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
        position_terms: tuple of "c2p" and "p2c".
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
        functools.partial(_forward_kernel, length=length, settings=settings),
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


def backward(
    query, key, value, tables, keep, seed, output, logarithms, upstream, settings
):
    """Gradients of `forward`'s first result.

    Args:
        query, key, value, tables, keep, seed, settings: as `forward` takes them.
        output, logarithms: what `forward` gave.
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
        functools.partial(_backward_kernel, length=length, settings=settings),
        grid=(settings.groups, batch),
        in_specs=[
            shapes["seed"],
            shapes["keep"],
            *[shapes["rows"]] * 5,
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
    )(seed, keep, query, key, value, output, upstream, logarithms, *terms)
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


# --- the kernels ---


def _forward_kernel(seed, keep, query, key, value, *rest, length, settings):
    *tables, output, logarithms = rest
    tables = dict(zip(settings.position_terms, tables, strict=True))
    tile = tile_of(length)
    keys = _dropout_keys(seed, settings)

    def query_tile(i, _):
        at = _tile(i, tile)
        total = jnp.zeros((tile, LANES), jnp.float32)
        for head in range(settings.heads_a_group):
            own = _lanes_of(head, settings)
            queries = jnp.where(own, query[at, :], 0)

            def key_tile(j, carry, head=head, own=own, queries=queries):
                largest, denominator, context = carry
                there = _tile(j, tile)
                scores = _scores(queries, key[there, :], tables, i, j, length, own)
                allowed = keep[:, there] > 0
                scores = jnp.where(allowed, scores * settings.scale, NEVER)
                new = jnp.maximum(largest, scores.max(axis=1, keepdims=True))
                weights = jnp.where(allowed, jnp.exp(scores - new), 0.0)
                faded = jnp.exp(largest - new)
                kept = weights
                if settings.dropout:
                    kept = weights * _kept(keys[head], i, j, length, settings)
                values = jnp.where(own, value[there, :], 0)
                context = context * faded + _product(kept.astype(values.dtype), values)
                denominator = denominator * faded + weights.sum(axis=1, keepdims=True)
                return new, denominator, context

            column = jnp.zeros((tile, 1), jnp.float32)
            start = (column + NEVER, column, jnp.zeros((tile, LANES), jnp.float32))
            largest, denominator, context = _loop(length // tile, key_tile, start)
            some = denominator > 0
            denominator = jnp.where(some, denominator, 1.0)
            total += context / denominator
            logarithms[head : head + 1, at] = _as_row(largest + jnp.log(denominator))
        output[at, :] = total.astype(output.dtype)

    _loop(length // tile, query_tile)


def _backward_kernel(
    seed,
    keep,
    query,
    key,
    value,
    output,
    upstream,
    logarithms,
    *rest,
    length,
    settings,
):
    num_terms = len(settings.position_terms)
    tables, rest = rest[:num_terms], rest[num_terms:]
    (d_query, d_key, d_value), rest = rest[:3], rest[3:]
    d_tables, (sum_query, sum_key, sum_value) = rest[:num_terms], rest[num_terms:]
    tables = dict(zip(settings.position_terms, tables, strict=True))
    d_tables = dict(zip(settings.position_terms, d_tables, strict=True))
    tile = tile_of(length)
    dropout_keys = _dropout_keys(seed, settings)

    @pl.when(pl.program_id(1) == 0)
    def _():
        for one in d_tables.values():
            one[...] = jnp.zeros_like(one)

    for one in (sum_query, sum_key, sum_value):
        one[...] = jnp.zeros_like(one)

    def pair_of_tiles(head, own, i, j):
        at, there = _tile(i, tile), _tile(j, tile)
        queries, keys = jnp.where(own, query[at, :], 0), key[there, :]
        scores = _scores(queries, keys, tables, i, j, length, own) * settings.scale
        column = _as_column(logarithms[head : head + 1, at])
        allowed = keep[:, there] > 0
        weights = jnp.where(allowed, jnp.exp(scores - column), 0.0)
        d_output = jnp.where(own, upstream[at, :], 0)
        d_weights = _product_by_rows(d_output, value[there, :])
        kept = weights
        if settings.dropout:
            dropped = _kept(dropout_keys[head], i, j, length, settings)
            kept, d_weights = weights * dropped, d_weights * dropped
        both = d_output.astype(jnp.float32) * output[at, :].astype(jnp.float32)
        mean = both.sum(axis=1, keepdims=True)
        d_scores = weights * (d_weights - mean) * settings.scale
        d_scores = d_scores.astype(queries.dtype)
        sum_value[there, :] += _product_by_columns(kept.astype(keys.dtype), d_output)
        keys = jnp.where(own, keys, 0)
        sum_query[at, :] += _product(d_scores, keys)
        sum_key[there, :] += _product_by_columns(d_scores, queries)
        for term, window in _windows(tables, i, j, length).items():
            is_c2p = term == "c2p"
            content = queries if is_c2p else keys
            total, first = (sum_query, i) if is_c2p else (sum_key, j)
            _position_gradient(
                d_scores,
                content,
                tables[term],
                d_tables[term],
                window,
                (total, first * tile),
                by_query=is_c2p,
                own=own,
            )

    count = length // tile
    for head in range(settings.heads_a_group):
        own = _lanes_of(head, settings)
        _loop(
            count,
            lambda i, _, head=head, own=own: _loop(
                count, lambda j, _: pair_of_tiles(head, own, i, j)
            ),
        )
    for one, total in (
        (d_query, sum_query),
        (d_key, sum_key),
        (d_value, sum_value),
    ):
        one[...] = total[...].astype(one.dtype)


# --- the parts of a tile ---


def tile_of(length):
    """Positions of a tile: the largest that divides the length."""
    sizes = range(LARGEST_TILE, 0, -LANES)
    return next(size for size in sizes if length % size == 0)


def _scores(queries, keys, tables, i, j, length, own):
    """Sum of the terms of a tile, (t, t): queries of one head, other lanes zero."""
    scores = _product_by_rows(queries, keys)
    tile = queries.shape[0]
    windows = _windows(tables, i, j, length)
    if "c2p" in tables:
        scores += jnp.concatenate(
            [
                _shifted(queries[rows], tables["c2p"], windows["c2p"], r, tile)
                for r, rows in _parts(tile)
            ],
            axis=0,
        )
    if "p2c" in tables:
        keys = jnp.where(own, keys, 0)
        scores += jnp.concatenate(
            [
                _shifted(keys[rows], tables["p2c"], windows["p2c"], r, tile).T
                for r, rows in _parts(tile)
            ],
            axis=1,
        )
    return scores


def _windows(tables, i, j, length):
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


def _parts(tile):
    """Pairs of a number and the slice of LANES rows."""
    return [(r, slice(r * LANES, (r + 1) * LANES)) for r in range(tile // LANES)]


def _rows_of_window(first, part, tile):
    """The table rows that a part of a tile needs."""
    start = first + tile - LANES - part * LANES
    if not isinstance(start, int):
        start = pl.multiple_of(start, LANES)
    return pl.ds(start, tile + LANES)


def _shifted(content, table, first, part, tile):
    """(LANES, t): y[a, b] = content[a] · table[... + LANES - 1 - a + b]."""
    rows = table[_rows_of_window(first, part, tile), :]
    product = _product_by_rows(content, rows)
    turned = pltpu.roll(product, tile + 1, axis=1, stride=1, stride_axis=0)
    return turned[:, :tile]


def _position_gradient(d_scores, content, table, d_table, first, total, by_query, own):
    """Adds what a position term gives to the gradients of its content and table.

    A rotation goes one way only. So rows are reversed, by a product with the
    anti-identity, shifted, and what comes of them is reversed again.
    """
    tile = d_scores.shape[0]
    sums, start = total
    turn = _anti_identity(d_scores.dtype)
    for part, rows in _parts(tile):
        if by_query:
            reversed_scores = _product(turn, d_scores[rows])
        else:
            reversed_scores = _product_by_rows(turn, d_scores[:, rows])
        zeros = jnp.zeros((LANES, LANES), jnp.float32)
        spread = jnp.concatenate([reversed_scores, zeros], axis=1)
        spread = pltpu.roll(spread, 0, axis=1, stride=1, stride_axis=0)
        spread = spread.astype(content.dtype)
        window = _rows_of_window(first, part, tile)
        turned_content = _product(turn, content[rows]).astype(content.dtype)
        d_table[window, :] += _product_by_columns(spread, turned_content)
        d_content = _product(spread, table[window, :]).astype(content.dtype)
        here = start + part * LANES
        if not isinstance(here, int):
            here = pl.multiple_of(here, LANES)
        sums[pl.ds(here, LANES), :] += jnp.where(own, _product(turn, d_content), 0.0)


def _dropout_keys(seed, settings):
    """Two int32 keys for each head of the group, of this example."""
    group, example = pl.program_id(0), pl.program_id(1)
    first = example * settings.num_heads + group * settings.heads_a_group
    numbers = [first + head for head in range(settings.heads_a_group)]
    return [(hashed(seed[0, 0] ^ n), hashed(seed[0, 1] + n)) for n in numbers]


def _kept(keys, i, j, length, settings):
    """Dropout's factors of a tile, 0 or 1 / (1 - rate): a hash of keys and place.

    The same bits in both passes and on every device, which the chip's own generator
    would not give.
    """
    tile = tile_of(length)
    first, second = keys
    rows = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + i * tile
    columns = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1) + j * tile
    return dropout_factors(rows * length + columns, first, second, settings.dropout)


def dropout_factors(place, first, second, rate):
    """0 or 1 / (1 - rate), float32, for each int32 place under two int32 keys."""
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


def _loop(count, body, carry=None):
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


def _tile(number, tile):
    start = number * tile
    if not isinstance(start, int):
        start = pl.multiple_of(start, LANES)
    return pl.ds(start, tile)


def _lanes_of(head, settings):
    """Which lanes are a head's, bool (1, LANES)."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    first = head * settings.head_dim
    return (lanes >= first) & (lanes < first + settings.head_dim)


def _anti_identity(dtype):
    rows = jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1)
    return jnp.where(rows + columns == LANES - 1, 1.0, 0.0).astype(dtype)


def _as_row(column):
    """(t, 1) -> (1, t)."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[0:1, :]


def _as_column(row):
    """(1, t) -> (t, 1)."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, 0:1]


def _dot(one, two, axes):
    return jax.lax.dot_general(
        one, two, (axes, ((), ())), preferred_element_type=jnp.float32
    )


def _product(one, two):
    """one @ two, in float32."""
    return _dot(one, two, ((1,), (0,)))


def _product_by_rows(one, two):
    """one @ two.T"""
    return _dot(one, two, ((1,), (1,)))


def _product_by_columns(one, two):
    """one.T @ two"""
    return _dot(one, two, ((0,), (0,)))
