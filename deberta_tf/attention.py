"""Disentangled self-attention (section 3.1 of the paper).

Axes in comments: `b` example, `q` query position, `k` key position, `n` head,
`h` head width, `r` row of the relative table.
"""

import keras
import tensorflow as tf

from deberta_tf import fused_attention
from deberta_tf.attention_forms import ATTENTION_FORMS, block_size, chosen_form
from deberta_tf.attention_masks import full_mask, uniform_where_lost, without_lost
from deberta_tf.dense import Dense
from deberta_tf.dropout import Dropout
from deberta_tf.position_terms import position_terms
from deberta_tf.relative_position import RelativePositions, dimensions

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
        attention_form: str. How the position terms are computed; equal to rounding.
            `"gather"` reads them by a matrix of indices, the plain reading of the
            paper. The others gather nothing over scores, which is what makes training
            on TPU slow (huggingface/transformers#18239): `"shift"` gathers rows of the
            table by distance and shifts; `"product"` shifts by matrix products, which
            a TPU is better at; `"fused"` is one kernel for TPUs (v5e and v6e;
            requirements-fused.txt), "product" where it does not fit a call, and
            "shift" where there is no TPU.
            `"auto"` is "shift" but on TPUs; there "fused" where it can be had, else
            "product".
        kernel_initializer: Keras initializer of all projections.

    Call arguments:
        query: (b, q, hidden).
        memory: (b, k, hidden), what keys and values are made of, or what
            `project_memory` makes of it; None: `query`.
        relative_embeddings: (r, hidden) relative table, or what `project_positions`
            makes of it; None without position terms.
        attention_mask: bool or int (b, q, k), True where query q may look at key
            k; or (b, l), of padding, which neither looks nor is looked at. A row
            without any such key gives zeros. None: everywhere.
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
        form = chosen_form(self.attention_form)
        if form == "fused":
            fits = not return_attention_scores and self._fits_kernel(
                query, memory, relative_embeddings, attention_mask, query_positions
            )
            if fits:
                return self.output_dense(
                    self._fused(query, relative_embeddings, attention_mask, training)
                )
            form = "product"
        if query_positions is not None:
            query_positions = tf.cast(query_positions, "int32")
        mask = full_mask(attention_mask)
        projected = self.project_memory(query if memory is None else memory)
        keys, values = projected["keys"], projected["values"]
        context, probabilities = self._contexts(
            self._split_heads(self.query_dense(query)),
            keys,
            values,
            self._reachable(relative_embeddings, query, keys, training),
            mask,
            query_positions,
            form,
            training,
        )
        output = self.output_dense(self._join_heads(context))
        if not return_attention_scores:
            return output
        if mask is not None:
            probabilities = tf.where(mask[None], probabilities, 0.0)
        return output, tf.transpose(probabilities, [1, 0, 2, 3])

    def _contexts(self, queries, keys, values, positions, mask, at, form, training):
        """(n, b, q, h), and the probabilities, of whole queries or block by block."""

        def of(queries, mask, first):
            terms = self._terms(queries, keys, positions, at, form, first)
            content = terms.pop("c2c")
            scores = content + tf.add_n([*terms.values()]) if terms else content
            probabilities = uniform_where_lost(scores, mask)
            weights = tf.cast(probabilities, self.compute_dtype)
            weights = self.probability_dropout(weights, training=training)
            context = tf.matmul(weights, values)
            return without_lost(context, mask), probabilities

        size = block_size(queries.shape[2]) if at is None and form == "shift" else None
        if size is None or not self.position_terms:
            return of(queries, mask, 0)
        found, before = [], []
        for first in range(0, queries.shape[2], size):
            count = min(size, queries.shape[2] - first)
            part = mask if mask is None else mask[:, first : first + count]
            # One after the other, so that one's scores are there at a time: the terms
            # of keys and positions, too, which do not wait for queries.
            with tf.control_dependencies(before):
                block = tf.slice(queries, [0, 0, first, 0], [-1, -1, count, -1])
                found.append(of(block, part, first))
            before = [found[-1][0]]
        return [tf.concat(parts, axis=2) for parts in zip(*found, strict=True)]

    def score_terms(self, query, memory, relative_embeddings, query_positions=None):
        """The terms whose sum the softmax takes.

        Args:
            query, memory, relative_embeddings, query_positions: as the layer is called
                with.

        Returns:
            dict of float32 (n, b, q, k): "c2c", content to content, and the position
            terms that the layer has, "c2p" and "p2c".
        """
        keys = self.project_memory(memory)["keys"]
        return self._terms(
            self._split_heads(self.query_dense(query)),
            keys,
            self._reachable(relative_embeddings, query, keys),
            query_positions,
            "shift",
        )

    def _terms(self, queries, keys, positions, at, form, first=0):
        scale = self._scale
        half = (queries, keys)
        # float32 whatever the policy: half-precision scores overflow in training
        # (SPEC 11.5).
        queries = tf.cast(queries, "float32") * scale
        keys = tf.cast(keys, "float32")
        terms = {"c2c": tf.matmul(queries, keys, transpose_b=True)}  # (n, b, q, k)
        if not self.position_terms:
            return terms
        tables, relative_positions = positions
        factors = {}
        if form == "product" and self.compute_dtype == "bfloat16":
            # A TPU multiplies float32 as bfloat16 in any case; this halves what it
            # moves. Its range is that of float32.
            queries, keys = half
            factors = {"c2p": scale}
        return terms | {
            term: tf.cast(one, "float32") * factors.get(term, 1.0)
            for term, one in position_terms(
                queries,
                keys,
                tables.get("c2p"),
                tables.get("p2c"),
                relative_positions,
                form=form,
                query_positions=at,
                first_query=first,
            ).items()
        }

    def _reachable(self, relative_embeddings, query, keys, training=None):
        """Projected tables, of the rows that such lengths need, and what picks them."""
        positions = self.relative_positions
        if not self.position_terms:
            return None
        lengths = query.shape[1], keys.shape[2]
        is_table = relative_embeddings is not None and not isinstance(
            relative_embeddings, dict
        )
        if is_table and None not in lengths:
            first, count, positions = positions.within(max(lengths) - 1)
            relative_embeddings = tf.slice(relative_embeddings, [first, 0], [count, -1])
        return self.project_positions(relative_embeddings, training), positions

    def _fits_kernel(self, query, memory, table, mask, at):
        """Whether the fused kernel computes contexts of such inputs."""
        if memory is not None or self.probability_dropout.rate == 1:
            return False
        # A table that is projected already, or missing, is for the other forms.
        if self.position_terms and (table is None or isinstance(table, dict)):
            return False
        return not fused_attention.unfit(
            self.num_heads,
            self.head_dim,
            tuple(query.shape[:2]),
            self.compute_dtype,
            at,
            2 if mask is None else mask.shape.rank,
        )

    def _fused(self, query, table, padding_mask, training):
        """(b, l, n·h), by the kernel."""
        first, count, positions = self.relative_positions.within(query.shape[1] - 1)
        tables = {}
        if self.position_terms:
            tables = self._projected(tf.slice(table, [first, 0], [count, -1]), training)
        dropout = self.probability_dropout
        drops = training and dropout.rate > 0
        return fused_attention.fused_attention(
            self.query_dense(query),
            self.key_dense(query),
            self.value_dense(query),
            tables,
            padding_mask,
            positions,
            num_heads=self.num_heads,
            scale=self._scale,
            dropout=dropout.rate,
            seed=dropout.seed_generator.next() if drops else None,
        )

    def project_memory(self, memory):
        """Keys and values, once for all the queries that are to look at them.

        A call may take it in place of `memory`, any number of times.

        Args:
            memory: (b, k, hidden).

        Returns:
            dict of (n, b, k, h): "keys" and "values".
        """
        if isinstance(memory, dict):
            return memory
        return {
            "keys": self._split_heads(self.key_dense(memory)),
            "values": self._split_heads(self.value_dense(memory)),
        }

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
        scales = {"c2p": 1.0, "p2c": self._scale}
        return {
            term: tf.cast(self._split_heads(one[None])[:, 0], "float32") * scales[term]
            for term, one in self._projected(relative_embeddings, training).items()
        }

    def _projected(self, table, training):
        """{term: (r, n·h)}, the table as keys and as queries."""
        table = self.table_dropout(
            tf.cast(table, self.compute_dtype), training=training
        )
        denses = {"c2p": self.position_key_dense, "p2c": self.position_query_dense}
        return {term: denses[term](table) for term in self.position_terms}

    @property
    def _scale(self):
        return (self.head_dim * (1 + len(self.position_terms))) ** -0.5

    def _split_heads(self, x):
        """(b, l, n·h) -> (n, b, l, h).

        Heads lead, so that products with the projected table are one matrix
        product a head, over all examples: nothing of the table is repeated per
        example, in the gradient neither, but where the form "shift" multiplies it by
        blocks of queries.
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
        dense = Dense(
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
        count = keys["keys"].shape[2] if isinstance(keys, dict) else keys.shape[1]
        shape = (query.shape[0], self.num_heads, query.shape[1], count)
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
