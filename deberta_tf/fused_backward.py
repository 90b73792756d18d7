"""The backward pass of the fused kernel, a group of heads of an example (Pallas).

Scores and probabilities are computed again, tile by tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deberta_tf import fused_tiles as tiles


def backward_kernel(
    seed, keep, query, key, value, upstream, logarithms, *rest, length, settings
):
    """Writes what `fused_kernel.backward` returns, of one step of its grid.

    Args:
        seed, keep, query, key, value, length, settings: as `forward_kernel` takes them.
        upstream: reference to (l, LANES), gradient of the contexts.
        logarithms: reference to float32 (heads_a_group, l), written by
            `forward_kernel`.
        rest: references to the tables (2l, LANES), in the order of
            `settings.position_terms`; to what is written: the gradients of query, key
            and value (l, LANES), those of the tables, float32; and to room for three
            sums, float32 (l, LANES).
    """
    count = len(settings.position_terms)
    tables, gradients = _named(rest[:count], settings), rest[count : count + 3]
    d_tables = _named(rest[count + 3 : -3], settings)
    sums = dict(zip(("query", "key", "value"), rest[-3:], strict=True))

    @pl.when(pl.program_id(1) == 0)
    def _():
        _clear(d_tables)

    _clear(sums)
    dropout_keys = tiles.dropout_keys(seed, settings)
    operands = (keep, query, key, value, upstream, logarithms, tables)
    for head in range(settings.heads_a_group):
        add = functools.partial(
            _add_gradients,
            head=head,
            operands=operands,
            d_tables=d_tables,
            sums=sums,
            dropout_keys=dropout_keys[head],
            length=length,
            settings=settings,
        )
        tiles.loop(length // tiles.tile_of(length), add)
    for one, total in zip(gradients, sums.values(), strict=True):
        one[...] = total[...].astype(one.dtype)


def _named(references, settings):
    return dict(zip(settings.position_terms, references, strict=True))


def _clear(references):
    for one in references.values():
        one[...] = jnp.zeros_like(one)


def _add_gradients(
    i, _, head, operands, d_tables, sums, dropout_keys, length, settings
):
    """Adds to the sums what comes of one head's tile of queries, i."""
    keep, query, key, value, upstream, logarithms, tables = operands
    tile = tiles.tile_of(length)
    count = length // tile
    at, own = tiles.tile_at(i, tile), tiles.lanes_of(head, settings)
    queries = jnp.where(own, query[at, :], 0)
    d_output = jnp.where(own, upstream[at, :], 0)
    column = tiles.as_column(logarithms[head : head + 1, at])

    def softmax(j):
        """Probabilities, what dropout leaves of them, and their gradient, (t, t)."""
        there = tiles.tile_at(j, tile)
        scores = tiles.scores_of(queries, key[there, :], tables, i, j, length, own)
        allowed = keep[:, there] > 0
        weights = jnp.exp(scores * settings.scale - column)
        weights = jnp.where(allowed, weights, 0.0)
        d_weights = tiles.product_by_rows(d_output, value[there, :])
        if not settings.dropout:
            return weights, weights, d_weights
        factors = tiles.dropout_of(dropout_keys, i, j, length, settings.dropout)
        return weights, weights * factors, d_weights * factors

    if count == 1:
        # The tile of the mean and of the gradients is one, and computed once.
        softmax = functools.cache(softmax)

    def add_to_mean(j, mean):
        weights, _, d_weights = softmax(j)
        return mean + (weights * d_weights).sum(axis=1, keepdims=True)

    # Not by the output, which is rounded: the gradients of a row's scores would not
    # cancel, as those of the keys' bias have to.
    mean = tiles.loop(count, add_to_mean, jnp.zeros((tile, 1), jnp.float32))

    def key_tile(j, _):
        weights, kept, d_weights = softmax(j)
        d_scores = weights * (d_weights - mean) * settings.scale
        d_scores = d_scores.astype(queries.dtype)
        there = tiles.tile_at(j, tile)
        keys = jnp.where(own, key[there, :], 0)
        kept = kept.astype(keys.dtype)
        sums["value"][there, :] += tiles.product_by_columns(kept, d_output)
        sums["query"][at, :] += tiles.product(d_scores, keys)
        sums["key"][there, :] += tiles.product_by_columns(d_scores, queries)
        for term, first in tiles.windows(tables, i, j, length).items():
            name, content, here = {
                "c2p": ("query", queries, at),
                "p2c": ("key", keys, there),
            }[term]
            found = _position_gradient(
                d_scores, content, tables[term], d_tables[term], first, term == "c2p"
            )
            sums[name][here, :] += jnp.where(own, found, 0.0)

    tiles.loop(count, key_tile)


def _position_gradient(d_scores, content, table, d_table, first, by_query):
    """What a position term gives to its content's gradient; adds to its table's.

    A rotation goes one way only. So rows are reversed, by a product with the
    anti-identity, shifted, and what comes of them is reversed again.

    Args:
        d_scores: (t, t).
        content: (t, LANES), queries of "c2p", or keys of "p2c", of one head.
        table, d_table: references to (2l, LANES).
        first: int, the first row of the tile's window.
        by_query: bool, whether rows of the term are queries.

    Returns:
        float32 (t, LANES), with other heads' lanes in it.
    """
    tile = d_scores.shape[0]
    turn = _anti_identity(d_scores.dtype)
    found = []
    for part, rows in tiles.parts(tile):
        if by_query:
            turned = tiles.product(turn, d_scores[rows])
        else:
            turned = tiles.product_by_rows(turn, d_scores[:, rows])
        zeros = jnp.zeros((tiles.LANES, tiles.LANES), jnp.float32)
        spread = jnp.concatenate([turned, zeros], axis=1)
        spread = pltpu.roll(spread, 0, axis=1, stride=1, stride_axis=0)
        spread = spread.astype(content.dtype)
        window = tiles.rows_of_window(first, part, tile)
        turned_content = tiles.product(turn, content[rows]).astype(content.dtype)
        d_table[window, :] += tiles.product_by_columns(spread, turned_content)
        d_content = tiles.product(spread, table[window, :]).astype(content.dtype)
        found.append(tiles.product(turn, d_content))
    return jnp.concatenate(found, axis=0)


def _anti_identity(dtype):
    shape = (tiles.LANES, tiles.LANES)
    rows = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return jnp.where(rows + columns == tiles.LANES - 1, 1.0, 0.0).astype(dtype)
