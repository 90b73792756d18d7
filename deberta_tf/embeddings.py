"""The embeddings of DeBERTa: tokens, segments, optional absolute positions."""

import keras
import tensorflow as tf

from deberta_tf.dense import Dense
from deberta_tf.dropout import Dropout
from deberta_tf.relative_position import dimensions


def table_initializer():
    """Normal(0, 0.02): linear weights and tables alike (SPEC 2.5)."""
    return keras.initializers.RandomNormal(stddev=0.02)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEmbeddings(keras.layers.Layer):
    """Sum of the tables, projected, normalised, zero at padding, dropped out.

    Args:
        vocabulary_size: int.
        hidden_dim: int.
        embedding_dim: int. Width of the tables.
        num_positions: int. Rows of the absolute-position table; 0: none.
        num_segments: int. Rows of the segment table; 0: none.
        dropout: float.
        layer_norm_epsilon: float.

    Call arguments:
        inputs: dict of `token_ids`, `padding_mask` and, where the layer has
            segments, `segment_ids`, as `DebertaBackbone` takes them.
        perturb: callable from the sum, normalised without scale and offset, (b, l,
            hidden), to what takes its place; the layer norm then follows whole (SPEC
            5.2). None: neither is done.
        table: (vocabulary_size, embedding_dim) to look tokens up in, in place of
            the layer's own.

    Returns:
        (b, l, hidden).

    Source: SPEC 2.1.
    """

    def __init__(
        self,
        vocabulary_size,
        hidden_dim,
        embedding_dim,
        num_positions=0,
        num_segments=0,
        dropout=0.0,
        layer_norm_epsilon=1e-7,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.embedding_dim = embedding_dim
        self.vocabulary_size = vocabulary_size
        self.num_positions = num_positions
        self.num_segments = num_segments
        self.token_embedding = self._make_table(vocabulary_size, "token_embedding")
        self.segment_embedding = self.position_embedding = self.projection = None
        if num_segments:
            self.segment_embedding = self._make_table(num_segments, "segment_embedding")
        if num_positions:
            self.position_embedding = self._make_table(
                num_positions, "position_embedding"
            )
        if embedding_dim != hidden_dim:
            self.projection = Dense(
                hidden_dim,
                use_bias=False,
                kernel_initializer=table_initializer(),
                dtype=self.dtype_policy,
                name="projection",
            )
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="layer_norm"
        )
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, inputs_shape):
        for table in (
            self.token_embedding,
            self.segment_embedding,
            self.position_embedding,
        ):
            if table is not None:
                table.build((None, None))
        if self.projection is not None:
            self.projection.build((None, None, self.embedding_dim))
        self.layer_norm.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, inputs, perturb=None, table=None, training=None):
        x = self.project(self._sum_tables(inputs, table))
        if perturb is not None:
            x = tf.cast(perturb(self.normalize(x)), x.dtype)
        x = self.layer_norm(x)
        x *= tf.cast(token_mask(inputs["padding_mask"]), x.dtype)[..., None]
        return self.dropout(x, training=training)

    def project(self, x):
        """From the width of the tables to that of the hidden states."""
        return x if self.projection is None else self.projection(x)

    def normalize(self, x):
        """Layer norm without scale and offset, in float32."""
        return keras.ops.layer_normalization(x, epsilon=self.layer_norm.epsilon)

    def _sum_tables(self, inputs, table):
        token_ids = inputs["token_ids"]
        if table is None:
            x = self.token_embedding(token_ids)
        else:
            x = tf.gather(tf.cast(table, self.compute_dtype), token_ids)
        if self.segment_embedding is not None:
            if "segment_ids" not in inputs:
                raise ValueError(
                    "The model has segments: its inputs must have segment_ids. "
                    f"Received: {', '.join(sorted(inputs))}"
                )
            x += self.segment_embedding(inputs["segment_ids"])
        if self.position_embedding is not None:
            length = dimensions(token_ids)[1]
            check_absolute_length(length, self.num_positions)
            x += self.position_embedding(tf.range(length))
        return x

    def _make_table(self, rows, name):
        return keras.layers.Embedding(
            rows,
            self.embedding_dim,
            embeddings_initializer=table_initializer(),
            dtype=self.dtype_policy,
            name=name,
        )

    def compute_output_spec(self, inputs, *args, **kwargs):
        shape = (*inputs["token_ids"].shape, self.hidden_dim)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "embedding_dim": self.embedding_dim,
            "num_positions": self.num_positions,
            "num_segments": self.num_segments,
            "dropout": self.dropout.rate,
            "layer_norm_epsilon": self.layer_norm.epsilon,
        }


def check_absolute_length(length, num_positions):
    """Refuses a sequence with more tokens than there are absolute positions."""
    if not isinstance(length, int):
        message = (
            "A sequence is longer than the absolute positions of the model "
            f"(max_sequence_length={num_positions})"
        )
        tf.debugging.assert_less_equal(length, num_positions, message)
    elif length > num_positions:
        raise ValueError(
            "Absolute positions end at max_sequence_length. Received: "
            f"max_sequence_length={num_positions}, a sequence of {length} tokens"
        )


def token_mask(padding_mask):
    """Which positions hold a token, bool (b, l), from a mask of either rank.

    Of a mask (b, l, l) they are the keys that some query may look at.
    """
    padding_mask = tf.cast(padding_mask, "bool")
    if padding_mask.shape.rank == 3:
        return tf.reduce_any(padding_mask, axis=1)
    return padding_mask
