"""The backward pass of the fused kernel, a group of heads of an example (Pallas).

Scores and probabilities are computed again, tile by tile.
"""

import dataclasses
import functools
from typing import Any

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
    step = _Step(
        keep, query, key, value, upstream, logarithms, tables, d_tables, sums,
        tiles.dropout_keys(seed, settings), length, settings,
    )  # fmt: skip
    for head in range(settings.heads_a_group):
        add = functools.partial(_add_gradients, step, head)
        tiles.loop(length // step.tile, lambda i, _, add=add: add(i))
    for one, total in zip(gradients, sums.values(), strict=True):
        one[...] = total[...].astype(one.dtype)


def _named(references, settings):
    return dict(zip(settings.position_terms, references, strict=True))


def _clear(references):
    for one in references.values():
        one[...] = jnp.zeros_like(one)


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of the grid: references as `backward_kernel` takes them, and sums."""

    keep: Any
    query: Any
    key: Any
    value: Any
    upstream: Any
    logarithms: Any
    tables: dict
    d_tables: dict
    sums: dict
    dropout_keys: list
    length: int
    settings: Any

    @property
    def tile(self):
        return tiles.tile_of(self.length)

    def at(self, number):
        return tiles.tile_at(number, self.tile)

    def of_head(self, reference, head, number):
        """(t, LANES), a tile of a reference, zero in other heads' lanes."""
        own = tiles.lanes_of(head, self.settings)
        return jnp.where(own, reference[self.at(number), :], 0)


def _add_gradients(step, head, i):
    """Adds what comes of one head's tile of queries."""
    count = step.length // step.tile
    softmax = functools.partial(_softmax, step, head, i)
    if count == 1:
        # The tile of the mean and of the gradients is one, and computed once.
        softmax = functools.cache(softmax)

    def add_to_mean(j, mean):
        weights, _, d_weights = softmax(j)
        return mean + (weights * d_weights).sum(axis=1, keepdims=True)

    # Not by the output, which is rounded: the gradients of a row's scores would not
    # cancel, as those of the keys' bias have to.
    mean = tiles.loop(count, add_to_mean, jnp.zeros((step.tile, 1), jnp.float32))
    tiles.loop(count, lambda j, _: _add_tile(step, head, i, j, softmax(j), mean))


def _softmax(step, head, i, j):
    """Probabilities, what dropout leaves of them, and their gradient, (t, t)."""
    settings, there = step.settings, step.at(j)
    scores = tiles.scores_of(
        step.of_head(step.query, head, i),
        step.key[there, :],
        step.tables,
        i,
        j,
        step.length,
        tiles.lanes_of(head, settings),
    )
    logarithms = tiles.as_column(step.logarithms[head : head + 1, step.at(i)])
    allowed = step.keep[:, there] > 0
    weights = jnp.where(allowed, jnp.exp(scores * settings.scale - logarithms), 0.0)
    d_output = step.of_head(step.upstream, head, i)
    d_weights = tiles.product_by_rows(d_output, step.value[there, :])
    if not settings.dropout:
        return weights, weights, d_weights
    keys = step.dropout_keys[head]
    factors = tiles.dropout_of(keys, i, j, step.length, settings.dropout)
    return weights, weights * factors, d_weights * factors


def _add_tile(step, head, i, j, softmax, mean):
    """Adds what comes of a tile of queries and one of keys.

    Args:
        softmax: what `_softmax` gives of them.
        mean: float32 (t, 1), of the probabilities' gradients in a row.
    """
    weights, kept, d_weights = softmax
    dtype, at, there = step.query.dtype, step.at(i), step.at(j)
    d_scores = weights * (d_weights - mean) * step.settings.scale
    d_scores = d_scores.astype(dtype)
    queries = step.of_head(step.query, head, i)
    keys = step.of_head(step.key, head, j)
    d_output = step.of_head(step.upstream, head, i)
    sums = step.sums
    sums["value"][there, :] += tiles.product_by_columns(kept.astype(dtype), d_output)
    sums["query"][at, :] += tiles.product(d_scores, keys)
    sums["key"][there, :] += tiles.product_by_columns(d_scores, queries)
    own = tiles.lanes_of(head, step.settings)
    contents = {"c2p": ("query", queries, at), "p2c": ("key", keys, there)}
    for term, first in tiles.windows(step.tables, i, j, step.length).items():
        name, content, here = contents[term]
        table, d_table = step.tables[term], step.d_tables[term]
        found = _position_gradient(
            d_scores, content, table, d_table, first, by_query=term == "c2p"
        )
        sums[name][here, :] += jnp.where(own, found, 0.0)


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
