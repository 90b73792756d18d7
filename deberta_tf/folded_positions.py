"""Tables of positions that are projected before the blocks run, once for many calls."""

import contextlib

import tensorflow as tf


class FoldedPositions:
    """The tables of positions of an encoder's blocks, projected, as variables.

    For inference. The encoder does not hold them, so that they are no weights of it:
    what is traced with them in use needs this object, or its `variables`, to live.

    Args:
        encoder: `DebertaEncoder`, built, with a relative table or without.

    Attributes:
        tables: for each block a dict of float (n, r, h), "c2p" and "p2c" as
            `DisentangledSelfAttention.project_positions` gives them; zeros at first.
    """

    def __init__(self, encoder):
        self._encoder = encoder
        self.tables = [
            {
                term: tf.Variable(
                    tf.zeros(_shape(block.attention), encoder.variable_dtype),
                    trainable=False,
                )
                for term in block.attention.position_terms
            }
            for block in encoder.blocks
        ]
        # Operations one by one take longer than what they compute for short rows.
        self._project_rows = tf.function(self._project_rows, autograph=False)

    @property
    def variables(self):
        return [one for tables in self.tables for one in tables.values()]

    def project(self, length=None):
        """Computes them from the weights that the encoder has now.

        Args:
            length: int. Tokens of the longest row that is to come: what no distance in
                it reaches is left as it is. None: all.
        """
        encoder = self._encoder
        if not encoder.has_relative_table:
            return
        positions = encoder.blocks[0].attention.relative_positions
        first, count = 0, positions.num_rows
        if length is not None:
            first, count, _ = positions.within(length - 1)
        self._project_rows(tf.constant(first), tf.constant(count))

    def _project_rows(self, first, count):
        encoder = self._encoder
        rows = tf.slice(encoder.relative_table(), [first, 0], [count, -1])
        for block, tables in zip(encoder.blocks, self.tables, strict=True):
            for term, one in block.attention.project_positions(rows).items():
                table = tables[term]
                part = table[:, first : first + count]
                part.assign(tf.cast(one, table.dtype))

    @contextlib.contextmanager
    def in_use(self):
        """Within it the encoder's blocks take them, in this thread."""
        with self._encoder.taking(self.tables):
            yield


def _shape(attention):
    rows = attention.relative_positions.num_rows
    return [attention.num_heads, rows, attention.head_dim]
