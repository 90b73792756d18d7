"""The position terms of attention scores, in several forms that are equal to rounding.

Axes in comments: `b` example, `q` query position, `k` key position, `n` head, `h` head
width, `r` row of the relative table, `w` distance (one diagonal of the score matrix);
in blocks `I` and `J` are the block of the rows and of the columns, `s` a row within
one, `c` a column.
"""

import numpy as np
import tensorflow as tf

from deberta_tf.relative_position import (
    dimensions,
    relative_shift,
    select_rows,
    window_shift,
)

# Rows of a block of the form "product": the matrix that shifts it has 2 · 128³ entries,
# whatever the length.
BLOCK = 128
# Queries of a block from which c2p is computed block by block: smaller products are no
# faster, and the gradient of a block's table rows, (w, h), is no larger than its
# scores, (s, w), with heads as wide as published ones, h = 64.
LEAST_QUERIES = 64


def position_terms(
    query,
    key,
    position_key,
    position_query,
    positions,
    form="shift",
    query_positions=None,
    first_query=0,
):
    """The position terms of the attention scores.

    Args:
        query: (n, b, q, h), float32, or bfloat16 for the form "product".
        key: (n, b, k, h).
        position_key: float32 (n, r, h), for the c2p term; None leaves it out.
        position_query: float32 (n, r, h), for the p2c term; None leaves it out.
        positions: `RelativePositions`.
        form: "gather", "shift" or "product", see `DisentangledSelfAttention`.
        query_positions: int (b, q), or None for `first_query` and those after it.
        first_query: int. Position of the first query.

    Returns:
        dict of (n, b, q, k) as `query`: "c2p" and "p2c", of those not left out.
    """
    at = query_positions
    # Which columns a query at a position known only at run time reads takes a loop
    # over the bits of the length, so a dynamic length goes by the gather. It
    # occurs in serving only.
    if form == "gather" or (at is not None and key.shape[-2] is None):
        if at is None:
            at = first_query + tf.range(dimensions(query)[2])[None]
        return _gathered_terms(query, key, position_key, position_query, positions, at)
    tables = {"c2p": position_key, "p2c": position_query}
    tables = {term: table for term, table in tables.items() if table is not None}
    lengths = key.shape[-2], 0 if at is not None else query.shape[-2]
    by_product = form == "product" and None not in lengths
    if at is not None:
        return _chosen_terms(query, key, tables, positions, at, by_product)
    terms = {}
    if "c2p" in tables:
        terms["c2p"] = _by_query(
            query, tables["c2p"], positions, dimensions(key)[2], first_query, by_product
        )
    if "p2c" in tables:
        terms["p2c"] = _by_key(
            key, tables["p2c"], positions, dimensions(query)[2], first_query, by_product
        )
    return terms


def _gathered_terms(query, key, position_key, position_query, positions, at):
    index = _row_index(key, positions, at)  # (b or 1, q, k)
    heads, batch, query_length, key_length = *dimensions(query)[:3], dimensions(key)[2]
    index = tf.broadcast_to(index, [heads, batch, query_length, key_length])
    terms = {}
    if position_key is not None:
        scores = _times_table(query, position_key)
        terms["c2p"] = tf.gather(scores, index, batch_dims=3)
    if position_query is not None:
        scores = _times_table(key, position_query)
        by_key = tf.gather(scores, tf.transpose(index, [0, 1, 3, 2]), batch_dims=3)
        terms["p2c"] = tf.transpose(by_key, [0, 1, 3, 2])
    return terms


def _row_index(key, positions, at):
    key_length = dimensions(key)[2]
    distances = at[..., None] - tf.range(key_length)
    longest = key_length if isinstance(key_length, int) else None
    return positions.rows_of(distances, longest)


def _by_query(query, table, positions, key_length, first_query, by_product):
    """c2p, (n, b, q, k)."""
    if by_product:
        return _by_product(query, table, positions, key_length, first_query, 1)
    size = _rows_of_block(query.shape[2], key_length)
    if size is None or size == query.shape[2] or size < LEAST_QUERIES:
        scores = _by_shift(query, table, positions, key_length, first_query, 1)
        return tf.squeeze(scores, 1)
    # A product a block and example: blocks stay where they are, so that nothing is
    # transposed, but the gradient of a block's table rows is there once an example.
    heads, batch, count, width = dimensions(query)
    flat = tf.reshape(query, [heads, batch, count // size, size, width])
    rows = _rows_of_blocks(
        table, positions, key_length, first_query, 1, size, count // size
    )
    rows = tf.expand_dims(tf.cast(rows, flat.dtype), 1)
    scores = tf.matmul(flat, rows, transpose_b=True)
    scores = relative_shift(scores, key_length)  # (n, b, I, s, k)
    return tf.reshape(scores, [heads, batch, count, key_length])


def _by_key(key, table, positions, query_length, first_query, by_product):
    """p2c, (n, b, q, k): rows are keys, and their distances run the other way."""
    if by_product:
        scores = _by_product(key, table, positions, query_length, -first_query, -1)
        return tf.transpose(scores, [0, 1, 3, 2])
    # Scores are transposed afterwards, which puts blocks together at no cost.
    size = _rows_of_block(key.shape[2], query_length)
    scores = _by_shift(key, table, positions, query_length, -first_query, -1, size)
    scores = tf.transpose(scores, [0, 2, 4, 1, 3])  # (n, b, q, I, s)
    heads, batch, length, _, _ = dimensions(scores)
    return tf.reshape(scores, [heads, batch, length, dimensions(key)[2]])


def _rows_of_block(rows, columns):
    """How many rows to take together, a divisor of them; None: all.

    s rows have s + columns distances: the fewer, the less is computed for nothing.
    """
    if rows is None or not isinstance(columns, int):
        return None
    sizes = (size for size in range(max(32, columns // 4), 31, -1))
    return next((size for size in sizes if rows % size == 0), None)


def _by_shift(content, table, positions, length, first, sign, size=None):
    """A term by its rows: a row for each distance, multiplied and shifted.

    Args:
        content: (n, b, l, h), whose a-th stands at `first + a`.
        table: (n, r, h).
        length: of the columns, which stand at 0 to length - 1.
        sign: 1 where the distance is that of the row less that of the column; -1.
        size: int, rows of a block; None: all in one.

    Returns:
        (n, I, b, s, length), in blocks of rows.
    """
    heads, batch, count, width = dimensions(content)
    if size is None or size == count:
        size, blocks = count, 1
        flat = tf.reshape(content, [heads, 1, batch * count, width])
    else:
        blocks = count // size
        flat = tf.reshape(content, [heads, batch, blocks, size, width])
        flat = tf.transpose(flat, [0, 2, 1, 3, 4])
        flat = tf.reshape(flat, [heads, blocks, batch * size, width])
    rows = _rows_of_blocks(table, positions, length, first, sign, size, blocks)
    scores = tf.matmul(flat, tf.cast(rows, flat.dtype), transpose_b=True)
    scores = tf.reshape(scores, [heads, blocks, batch, size, size + length])
    return relative_shift(scores, length)


def _rows_of_blocks(table, positions, length, first, sign, size, blocks):
    """(n, I, w, h): the table row of each distance that a block of rows can have."""
    starts = [first + block * size + size - 1 for block in range(blocks)]
    rows = [positions.along(sign * one, -sign, size + length) for one in starts]
    return tf.gather(table, tf.stack(rows), axis=1)


def _by_product(content, table, positions, length, first, sign):
    """A term by blocks of rows, each shifted by a product with a matrix of 0 and 1.

    On TPU to move scores within their tiles is dear, and products are not: row s of any
    block is moved by s columns, so one matrix a row serves all blocks, heads and
    examples. Args: those of `_by_shift`. Returns (n, b, l, length).
    """
    count = dimensions(content)[2]
    block = min(BLOCK, max(count, length))
    content = tf.pad(content, [[0, 0], [0, 0], [0, -count % block], [0, 0]])
    columns = length + -length % block
    heads, batch, rows, width = dimensions(content)
    content = tf.reshape(content, [heads, batch, rows // block, block, width])
    shape = [rows // block, columns // block, 2 * block]
    # Cast when they are taken, not before: the gradient of a row is the sum over all
    # places that it is read at, which in bfloat16 stands still at 256 equal ones.
    windows = tf.cast(_windows(table, positions, shape, first, sign), content.dtype)
    scores = tf.einsum("nbIsh,nIJwh->snbIJw", content, windows)
    moved = tf.einsum("snbIJw,swc->snbIJc", scores, _shifts(block, content.dtype))
    moved = tf.transpose(moved, [1, 2, 3, 0, 4, 5])  # (n, b, I, s, J, c)
    moved = tf.reshape(moved, [heads, batch, rows, columns])
    return tf.slice(moved, [0, 0, 0, 0], [-1, -1, count, length])


def _windows(table, positions, shape, first, sign):
    """(n, I, J, w, h): the table rows of the distances between two blocks.

    Entry w of blocks I and J stands for row s and column c where w = block - 1 - s + c.
    """
    row_blocks, column_blocks, width = shape
    block = width // 2
    start = first + block * np.arange(row_blocks)[:, None] + block - 1
    along = start - np.arange((column_blocks + 1) * block)[None]
    rows = positions.rows(sign * along)
    taken = tf.gather(table, rows.reshape(-1), axis=1)
    heads, _, head_dim = dimensions(table)
    taken = tf.reshape(taken, [heads, row_blocks, column_blocks + 1, block, head_dim])
    # A window of two blocks: its own, and the next one's.
    return tf.concat([taken[:, :, :-1], taken[:, :, 1:]], axis=3)


def _shifts(block, dtype):
    """(s, w, c): 1 where row s of a block reads column c from entry w, else 0."""
    row, entry, column = np.ogrid[:block, : 2 * block, :block]
    row, entry, column = (tf.constant(one, "int32") for one in (row, entry, column))
    return tf.cast(tf.equal(entry, block - 1 - row + column), dtype)


def _chosen_terms(query, key, tables, positions, at, by_product):
    """The terms of queries at positions known only at run time."""
    length = dimensions(key)[2]
    terms = {}
    if "c2p" in tables:
        rows = positions.along(length - 1, -1, 2 * length)
        scores = _times_table(query, tf.gather(tables["c2p"], rows, axis=1))
        terms["c2p"] = window_shift(scores, length - 1 - at, length)
    if "p2c" in tables:
        # They are read out of the full length.
        all_queries = _by_key(key, tables["p2c"], positions, length, 0, by_product)
        terms["p2c"] = select_rows(all_queries, at)
    return terms


def _times_table(content, table):
    """(n, b, l, h) x (n, r, h) -> (n, b, l, r), one product over all examples."""
    heads, batch, length, width = dimensions(content)
    flat = tf.reshape(content, [heads, batch * length, width])
    scores = tf.matmul(flat, tf.cast(table, flat.dtype), transpose_b=True)
    return tf.reshape(scores, [heads, batch, length, dimensions(table)[1]])
