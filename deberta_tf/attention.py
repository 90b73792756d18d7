"""Disentangled self-attention (section 3.1 of the paper).

Axes in comments: `b` example, `q` query position, `k` key position, `n` head,
`h` head width, `r` row of the relative table, `w` distance (one diagonal of the
score matrix).
"""

import keras
import tensorflow as tf

from deberta_tf.dropout import Dropout
from deberta_tf.relative_position import (
    RelativePositions,
    dimensions,
    relative_shift,
    select_rows,
    window_shift,
)

ATTENTION_FORMS = ("auto", "gather", "shift")
POSITION_TERMS = ("c2p", "p2c")


@keras.saving.register_keras_serializable("deberta_tf")
class DisentangledSelfAttention(keras.layers.Layer):
    """Attention whose scores add content-to-position and position-to-content terms.

    Score of query i and key j, for each head:
    `(Qc[i]·Kc[j] + Qc[i]·Kr[r] + Kc[j]·Qr[r]) / sqrt(h · (1 + position terms))`,
    where row `r` of the relative table stands for the distance i - j, the same in
    both position terms (SPEC 1.1; the paper's formula writes δ(j, i) in the third,
    no published model was trained so).

    Args:
        num_heads: int.
        head_dim: int. Width of a head.
        relative_positions: `RelativePositions`, or its dict. How a distance picks
            its row.
        position_terms: tuple, any of "c2p" and "p2c".
        share_position_projections: bool. Project the relative table by the key and
            query projections (v2, v3), or by projections of its own (v1).
        key_bias: bool. False in v1: keys, and the keys of positions, have no bias.
        dropout: float. Rate on the attention probabilities.
        table_dropout: float. Rate on the relative table, drawn once per call and
            never per example.
        attention_form: str. `"gather"` reads the position terms by a matrix of
            indices, the plain reading of the paper. `"shift"` gathers rows of the
            table by distance and shifts: no gather over scores, which is what makes
            training on TPU slow (huggingface/transformers#18239). `"auto"` is the
            shift. Equal to rounding.
        kernel_initializer: Keras initializer of all projections.

    Call arguments:
        query: (b, q, hidden).
        memory: (b, k, hidden), what keys and values are made of; None: `query`.
        relative_embeddings: (r, hidden) relative table, or what `project_positions`
            makes of it; None without position terms.
        attention_mask: bool or int (b, q, k), True where query q may look at key
            k. A row without any such key gives zeros. None: everywhere.
        query_positions: int (b, q), positions of the queries among the keys; None:
            query i stands at position i.
        return_attention_scores: bool. Also return the probabilities, before
            dropout, (b, n, q, k), float32.

    Returns:
        (b, q, hidden): contexts of all heads through the output projection.
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        relative_positions,
        position_terms=POSITION_TERMS,
        share_position_projections=True,
        key_bias=True,
        dropout=0.0,
        table_dropout=0.0,
        attention_form="auto",
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if attention_form not in ATTENTION_FORMS:
            raise ValueError(
                f"attention_form must be one of {', '.join(ATTENTION_FORMS)}. "
                f"Received: attention_form={attention_form!r}"
            )
        unknown = set(position_terms) - set(POSITION_TERMS)
        if isinstance(position_terms, str) or unknown:
            raise ValueError(
                "position_terms must be a tuple of 'c2p' and 'p2c', or empty. "
                f"Received: position_terms={position_terms!r}"
            )
        if isinstance(relative_positions, dict):
            relative_positions = RelativePositions(**relative_positions)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.relative_positions = relative_positions
        self.position_terms = tuple(position_terms)
        self.share_position_projections = share_position_projections
        self.key_bias = key_bias
        self.attention_form = attention_form
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.probability_dropout = self._make_dropout(dropout, "probability_dropout")
        self.table_dropout = self._make_dropout(table_dropout, "table_dropout")

    def build(self, query_shape):
        hidden_dim = query_shape[-1]
        width = self.num_heads * self.head_dim
        self.query_dense = self._make_dense(width, "query", hidden_dim)
        self.key_dense = self._make_dense(width, "key", hidden_dim, self.key_bias)
        self.value_dense = self._make_dense(width, "value", hidden_dim)
        self.position_key_dense = self.key_dense
        self.position_query_dense = self.query_dense
        if not self.share_position_projections:
            if "c2p" in self.position_terms:
                self.position_key_dense = self._make_dense(
                    width, "position_key", hidden_dim, self.key_bias
                )
            if "p2c" in self.position_terms:
                self.position_query_dense = self._make_dense(
                    width, "position_query", hidden_dim
                )
        self.output_dense = self._make_dense(hidden_dim, "attention_output", width)
        self.built = True

    def call(
        self,
        query,
        memory=None,
        relative_embeddings=None,
        attention_mask=None,
        query_positions=None,
        return_attention_scores=False,
        training=None,
    ):
        memory = query if memory is None else memory
        if query_positions is not None:
            query_positions = tf.cast(query_positions, "int32")
        positions = None
        if self.position_terms:
            positions = self.project_positions(relative_embeddings, training)
        terms = self.score_terms(query, memory, positions, query_positions)
        content = terms.pop("c2c")
        scores = content + tf.add_n([*terms.values()]) if terms else content
        probabilities = masked_softmax(scores, attention_mask)
        weights = tf.cast(probabilities, self.compute_dtype)
        weights = self.probability_dropout(weights, training=training)
        context = tf.matmul(weights, self._split_heads(self.value_dense(memory)))
        output = self.output_dense(self._join_heads(context))
        if return_attention_scores:
            return output, tf.transpose(probabilities, [1, 0, 2, 3])
        return output

    def score_terms(self, query, memory, positions, query_positions=None):
        """The terms whose sum the softmax takes.

        Args:
            query, memory: as the layer is called with.
            positions: as `project_positions` gives it; None without position terms.
            query_positions: int32 (b, q), or None.

        Returns:
            dict of float32 (n, b, q, k): "c2c", content to content, and the position
            terms that the layer has, "c2p" and "p2c".
        """
        scale = self._scale
        # float32 whatever the policy: half-precision scores overflow in training
        # (SPEC 11.5).
        queries = self._split_heads(self.query_dense(query))
        queries = tf.cast(queries, "float32") * scale
        keys = tf.cast(self._split_heads(self.key_dense(memory)), "float32")
        terms = {"c2c": tf.matmul(queries, keys, transpose_b=True)}  # (n, b, q, k)
        if self.position_terms:
            terms |= position_terms(
                queries,
                keys,
                positions.get("c2p"),
                positions.get("p2c"),
                self.relative_positions,
                form=self.attention_form,
                query_positions=query_positions,
            )
        return terms

    def project_positions(self, relative_embeddings, training=None):
        """The relative table as keys and as queries, once for all examples.

        Without dropout a call may take it in place of `relative_embeddings`, any number
        of times.

        Args:
            relative_embeddings: (r, hidden).
            training: bool.

        Returns:
            dict of (n, r, h), float32: "c2p", keys, and "p2c", queries, with the scale
            of the scores; what the layer has of them.
        """
        if isinstance(relative_embeddings, dict):
            return relative_embeddings
        if relative_embeddings is None:
            raise ValueError(
                "relative_embeddings must be given where there are position_terms. "
                f"Received: None, position_terms={self.position_terms}"
            )
        table = self.table_dropout(
            tf.cast(relative_embeddings, self.compute_dtype), training=training
        )
        denses = {
            "c2p": (self.position_key_dense, 1.0),
            "p2c": (self.position_query_dense, self._scale),
        }
        return {
            term: tf.cast(self._split_heads(dense(table)[None])[:, 0], "float32")
            * scale
            for term, (dense, scale) in denses.items()
            if term in self.position_terms
        }

    @property
    def _scale(self):
        return (self.head_dim * (1 + len(self.position_terms))) ** -0.5

    def _split_heads(self, x):
        """(b, l, n·h) -> (n, b, l, h).

        Heads lead, so that products with the projected table are one matrix
        product a head, over all examples: nothing of the table is repeated per
        example, in the gradient neither.
        """
        batch, length, _ = dimensions(x)
        x = tf.reshape(x, [batch, length, self.num_heads, self.head_dim])
        return tf.transpose(x, [2, 0, 1, 3])

    def _join_heads(self, x):
        """(n, b, q, h) -> (b, q, n·h)."""
        _, batch, length, _ = dimensions(x)
        x = tf.transpose(x, [1, 2, 0, 3])
        return tf.reshape(x, [batch, length, self.num_heads * self.head_dim])

    def _make_dense(self, units, name, input_dim, use_bias=True):
        dense = keras.layers.Dense(
            units,
            use_bias=use_bias,
            # A clone: one initializer gives the same numbers at each call.
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build((None, None, input_dim))
        return dense

    def _make_dropout(self, rate, name):
        return Dropout(rate, dtype=self.dtype_policy, name=name)

    def compute_output_spec(
        self, query, memory=None, *args, return_attention_scores=False, **kwargs
    ):
        output = keras.KerasTensor(query.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        keys = query if memory is None else memory
        shape = (query.shape[0], self.num_heads, query.shape[1], keys.shape[1])
        return output, keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        positions = self.relative_positions
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "relative_positions": {
                "bucket_size": positions.bucket_size,
                "max_distance": positions.max_distance,
                "clamp_distances": positions.clamp_distances,
            },
            "position_terms": list(self.position_terms),
            "share_position_projections": self.share_position_projections,
            "key_bias": self.key_bias,
            "dropout": self.probability_dropout.rate,
            "table_dropout": self.table_dropout.rate,
            "attention_form": self.attention_form,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def position_terms(
    query,
    key,
    position_key,
    position_query,
    positions,
    form="auto",
    query_positions=None,
):
    """The position terms of the attention scores.

    Args:
        query: float32 (n, b, q, h).
        key: float32 (n, b, k, h).
        position_key: (n, r, h), for the c2p term; None leaves it out.
        position_query: (n, r, h), for the p2c term; None leaves it out.
        positions: `RelativePositions`.
        form: "gather", "shift" or "auto", see `DisentangledSelfAttention`.
        query_positions: int (b, q), or None for 0 to q - 1.

    Returns:
        dict of float32 (n, b, q, k): "c2p" and "p2c", of those that are not left out.
    """
    # Which columns a query at a position known only at run time reads takes a loop
    # over the bits of the length, so a dynamic length goes by the gather. It
    # occurs in serving only.
    by_gather = form == "gather" or (
        query_positions is not None and key.shape[-2] is None
    )
    terms = _gathered_terms if by_gather else _shifted_terms
    return terms(query, key, position_key, position_query, positions, query_positions)


def _gathered_terms(query, key, position_key, position_query, positions, at):
    index = _row_index(query, key, positions, at)  # (b or 1, q, k)
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


def _row_index(query, key, positions, at):
    key_length = dimensions(key)[2]
    if at is None:
        at = tf.range(dimensions(query)[2])[None]
    distances = at[..., None] - tf.range(key_length)
    longest = key_length if isinstance(key_length, int) else None
    return positions.rows_of(distances, longest)


def _shifted_terms(query, key, position_key, position_query, positions, at):
    key_length = dimensions(key)[2]
    # Queries that stand at chosen positions are read out of the full length.
    query_length = dimensions(query)[2] if at is None else key_length
    terms = {}
    if position_key is not None:
        rows = positions.diagonal_rows(query_length, key_length)
        scores = _times_table(query, tf.gather(position_key, rows, axis=1))
        terms["c2p"] = (
            relative_shift(scores, key_length)
            if at is None
            else window_shift(scores, key_length - 1 - at, key_length)
        )
    if position_query is not None:
        # Keys are the rows here, and their distances run the other way: the same
        # diagonals, read backwards.
        rows = positions.reversed_diagonal_rows(query_length, key_length)
        scores = _times_table(key, tf.gather(position_query, rows, axis=1))
        by_key = relative_shift(scores, query_length)
        by_query = tf.transpose(by_key, [0, 1, 3, 2])
        terms["p2c"] = by_query if at is None else select_rows(by_query, at)
    return terms


def _times_table(content, table):
    """(n, b, l, h) x (n, r, h) -> (n, b, l, r), one product over all examples."""
    heads, batch, length, width = dimensions(content)
    flat = tf.reshape(content, [heads, batch * length, width])
    scores = tf.matmul(flat, tf.cast(table, flat.dtype), transpose_b=True)
    return tf.reshape(scores, [heads, batch, length, dimensions(table)[1]])


def masked_softmax(scores, attention_mask=None):
    """Softmax over the last axis where a mask allows, exact zeros elsewhere.

    Args:
        scores: float32 (n, b, q, k).
        attention_mask: bool or int (b, q, k), or None.

    Returns:
        float32 (n, b, q, k). A row that allows no key is all zeros, not NaN and
        not uniform (SPEC 1.7).
    """
    if attention_mask is None:
        return tf.nn.softmax(scores)
    mask = tf.cast(attention_mask, "bool")[None]
    probabilities = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min / 2))
    return tf.where(mask, probabilities, 0.0)
