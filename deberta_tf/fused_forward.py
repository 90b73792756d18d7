"""The forward pass of the fused kernel, a group of heads of an example (Pallas)."""

import jax.numpy as jnp

from deberta_tf import fused_tiles as tiles


def forward_kernel(seed, keep, query, key, value, *rest, length, settings):
    """Writes what `fused_kernel.forward` returns, of one step of its grid.

    Args:
        seed: reference to int32 (1, 2).
        keep: reference to float32 (1, l).
        query, key, value: references to (l, LANES).
        rest: references to the tables (2l, LANES), in the order of
            `settings.position_terms`, and to what is written: contexts (l, LANES) and
            logarithms (heads_a_group, l).
        length: int, l.
        settings: `fused_kernel.Settings`.
    """
    *tables, output, logarithms = rest
    tables = dict(zip(settings.position_terms, tables, strict=True))
    tile = tiles.tile_of(length)
    count = length // tile
    keys = tiles.dropout_keys(seed, settings)

    def context_of(head, i):
        """(t, LANES), zero in other heads' lanes; the softmax goes on key by key."""
        at, own = tiles.tile_at(i, tile), tiles.lanes_of(head, settings)
        queries = jnp.where(own, query[at, :], 0)

        def key_tile(j, carry):
            largest, denominator, context = carry
            there = tiles.tile_at(j, tile)
            scores = tiles.scores_of(queries, key[there, :], tables, i, j, length, own)
            allowed = keep[:, there] > 0
            scores = jnp.where(allowed, scores * settings.scale, tiles.NEVER)
            new = jnp.maximum(largest, scores.max(axis=1, keepdims=True))
            weights = jnp.where(allowed, jnp.exp(scores - new), 0.0)
            faded = jnp.exp(largest - new)
            denominator = denominator * faded + weights.sum(axis=1, keepdims=True)
            if settings.dropout:
                weights *= tiles.dropout_of(keys[head], i, j, length, settings.dropout)
            values = jnp.where(own, value[there, :], 0)
            added = tiles.product(weights.astype(values.dtype), values)
            return new, denominator, context * faded + added

        column = jnp.zeros((tile, 1), jnp.float32)
        nothing = jnp.zeros((tile, tiles.LANES), jnp.float32)
        start = (column + tiles.NEVER, column, nothing)
        largest, denominator, context = tiles.loop(count, key_tile, start)
        denominator = jnp.where(denominator > 0, denominator, 1.0)
        row = tiles.as_row(largest + jnp.log(denominator))
        logarithms[head : head + 1, at] = row
        return context / denominator

    def query_tile(i, _):
        contexts = [context_of(head, i) for head in range(settings.heads_a_group)]
        output[tiles.tile_at(i, tile), :] = sum(contexts).astype(output.dtype)

    tiles.loop(count, query_tile)
