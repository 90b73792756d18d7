"""The encoder of DeBERTa: blocks that share one relative table."""

import contextlib
import threading

import keras
import tensorflow as tf

from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.attention_masks import full_mask
from deberta_tf.block_loop import recomputed, scanned
from deberta_tf.convolution import NgramConvolution
from deberta_tf.dense import Dense
from deberta_tf.dropout import Dropout
from deberta_tf.embeddings import table_initializer, token_mask
from deberta_tf.folded_positions import FoldedPositions
from deberta_tf.relative_position import RelativePositions, select_rows


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEncoderBlock(keras.layers.Layer):
    """Attention and feed-forward, each with dropout, residual and layer norm after.

    Args:
        attention: dict. Arguments of `DisentangledSelfAttention`.
        intermediate_dim: int.
        activation: Keras activation.
        dropout: float. Rate on the outputs of attention and feed-forward.
        layer_norm_epsilon: float.

    Call arguments:
        query: (b, q, hidden).
        memory, relative_embeddings, attention_mask, query_positions: as
            `DisentangledSelfAttention` takes them.

    Returns:
        (b, q, hidden). The residual is the query's, not the memory's.
    """

    def __init__(
        self,
        attention,
        intermediate_dim,
        activation="gelu",
        dropout=0.0,
        layer_norm_epsilon=1e-7,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = keras.activations.get(activation)
        self.attention = DisentangledSelfAttention(
            **{"kernel_initializer": table_initializer(), **attention},
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention_dropout = self._make_dropout(dropout, "attention_dropout")
        self.output_dropout = self._make_dropout(dropout, "output_dropout")
        self.attention_norm = self._make_norm(layer_norm_epsilon, "attention_norm")
        self.output_norm = self._make_norm(layer_norm_epsilon, "output_norm")

    def build(self, query_shape):
        hidden_dim = query_shape[-1]
        self.intermediate_dense = self._make_dense(
            self.intermediate_dim, "intermediate", hidden_dim
        )
        self.output_dense = self._make_dense(
            hidden_dim, "output", self.intermediate_dim
        )
        for layer in (self.attention, self.attention_norm, self.output_norm):
            layer.build((None, None, hidden_dim))
        self.built = True

    def call(
        self,
        query,
        memory=None,
        relative_embeddings=None,
        attention_mask=None,
        query_positions=None,
        training=None,
    ):
        attended = self.attention(
            query,
            memory=memory,
            relative_embeddings=relative_embeddings,
            attention_mask=attention_mask,
            query_positions=query_positions,
            training=training,
        )
        attended = self.attention_dropout(attended, training=training)
        x = self.attention_norm(query + attended)
        inner = self.activation(self.intermediate_dense(x))
        inner = self.output_dropout(self.output_dense(inner), training=training)
        return self.output_norm(x + inner)

    def _make_dense(self, units, name, input_dim):
        dense = Dense(
            units,
            kernel_initializer=table_initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build((None, None, input_dim))
        return dense

    def _make_dropout(self, rate, name):
        return Dropout(rate, dtype=self.dtype_policy, name=name)

    def _make_norm(self, epsilon, name):
        return keras.layers.LayerNormalization(
            epsilon=epsilon, dtype=self.dtype_policy, name=name
        )

    def compute_output_spec(self, query, *args, **kwargs):
        return keras.KerasTensor(query.shape, dtype=self.compute_dtype)

    def get_config(self):
        attention = self.attention.get_config()
        for name in ("name", "dtype", "trainable"):
            attention.pop(name)
        return {
            **super().get_config(),
            "attention": attention,
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.output_dropout.rate,
            "layer_norm_epsilon": self.output_norm.epsilon,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEncoder(keras.layers.Layer):
    """Blocks over hidden states, sharing one table of relative positions.

    Args:
        num_layers: int.
        block: dict. Arguments of `DebertaEncoderBlock`.
        normalize_relative_embeddings: bool.
        convolution_kernel_size, convolution_groups, convolution_activation: of the
            `NgramConvolution` after the first block; kernel size 0: none.
        gradient_checkpointing, scan_layers: bools, as `DebertaBackbone` takes them.

    Call arguments:
        x: (b, l, hidden), the embeddings.
        padding_mask: (b, l) or (b, l, l), as `DebertaBackbone` takes it.
        states: bool. Return the list of all hidden states, embeddings first.
        skip_last_block: bool. Leave the last block out, for a decoder that runs it
            itself (`last_block`): one state less, and no time spent.

    Returns:
        (b, l, hidden), or the list.

    Source: SPEC 1, 2.2.
    """

    def __init__(
        self,
        num_layers,
        block,
        normalize_relative_embeddings=True,
        convolution_kernel_size=0,
        convolution_groups=1,
        convolution_activation="gelu",
        gradient_checkpointing=False,
        scan_layers=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_layers = num_layers
        self.gradient_checkpointing = gradient_checkpointing
        self.scan_layers = scan_layers
        self.normalize_relative_embeddings = normalize_relative_embeddings
        self.blocks = [
            DebertaEncoderBlock(**block, dtype=self.dtype_policy, name=f"block_{i}")
            for i in range(num_layers)
        ]
        self.relative_norm = self.convolution = self.relative_embeddings = None
        # Another thread may train meanwhile, or trace what trains.
        self._thread = threading.local()
        epsilon = self.blocks[0].output_norm.epsilon
        if self.has_relative_table and normalize_relative_embeddings:
            self.relative_norm = keras.layers.LayerNormalization(
                epsilon=epsilon, dtype=self.dtype_policy, name="relative_norm"
            )
        if convolution_kernel_size:
            self.convolution = NgramConvolution(
                convolution_kernel_size,
                convolution_groups,
                convolution_activation,
                dropout=self.blocks[0].output_dropout.rate,
                layer_norm_epsilon=epsilon,
                dtype=self.dtype_policy,
                name="convolution",
            )

    @property
    def has_relative_table(self):
        """Whether any position term reads the relative table."""
        return bool(self.blocks[0].attention.position_terms)

    def build(self, x_shape):
        hidden_dim = x_shape[-1]
        if self.has_relative_table:
            self.relative_embeddings = self.add_weight(
                shape=(self.relative_positions.num_rows, hidden_dim),
                initializer=table_initializer(),
                name="relative_embeddings",
            )
        for layer in (self.relative_norm, self.convolution, *self.blocks):
            if layer is not None:
                layer.build((None, None, hidden_dim))
        self.built = True

    def call(self, x, padding_mask, states=False, skip_last_block=False, training=None):
        mask = tf.cast(padding_mask, "bool")
        tables = self._position_tables()
        hidden = [x]
        blocks = self.blocks[:-1] if skip_last_block else self.blocks
        # Folded tables are those of a block.
        if self.scan_layers and len(blocks) > 1 and self._folded is None:
            # The convolution follows the first block alone: it stays out of the loop.
            alone = 0 if self.convolution is None else 1
            blocks, rest = blocks[:alone], blocks[alone:]
        else:
            rest = []
        for block, table in zip(blocks, tables, strict=False):
            output = self._run(block, hidden[-1], table, mask, training)
            if len(hidden) == 1 and self.convolution is not None:
                output = self.convolution(
                    x, output, token_mask(padding_mask), training=training
                )
            hidden.append(output)
        if rest:
            recompute = self.gradient_checkpointing
            hidden += scanned(rest, hidden[-1], tables[-1], mask, training, recompute)
        if not states:
            hidden = hidden[-1:]
        if training:
            hidden = [_without_lost_gradients(one, mask) for one in hidden]
        return hidden if states else hidden[-1]

    def _run(self, block, x, table, mask, training):
        if self.gradient_checkpointing and training:
            return recomputed(block, x, table, mask)
        return block(
            x, relative_embeddings=table, attention_mask=mask, training=training
        )

    def last_block(
        self, query, memory, padding_mask, query_positions=None, training=None
    ):
        """Runs the last block with queries of one's own.

        Args:
            query: (b, q, hidden).
            memory: (b, l, hidden), what keys and values are made of, or what
                `project_memory` makes of it.
            padding_mask: (b, l) or (b, l, l), of the memory.
            query_positions: int (b, q), where in the memory the queries stand;
                None: all its positions.

        Returns:
            (b, q, hidden).
        """
        mask = tf.cast(padding_mask, "bool")
        if query_positions is not None:
            mask = tf.cast(full_mask(mask), "float32")
            mask = select_rows(mask, query_positions) > 0
        return self.blocks[-1](
            query,
            memory=memory,
            relative_embeddings=self._position_tables()[-1],
            attention_mask=mask,
            query_positions=query_positions,
            training=training,
        )

    def project_memory(self, memory):
        """What `last_block` takes in place of `memory`, once for all its runs."""
        return self.blocks[-1].attention.project_memory(memory)

    @contextlib.contextmanager
    def folded_positions(self):
        """Within it every block has its tables of positions projected before, once.

        For inference. It gives the list of the variables that hold them, for an export:
        the layer itself does not, and what was traced within needs them.
        """
        folded = FoldedPositions(self)
        folded.project()
        with folded.in_use():
            yield folded.variables

    @contextlib.contextmanager
    def taking(self, tables):
        """Within it, in this thread, each block takes its dict of projected tables."""
        before, self._thread.tables = self._folded, tables
        try:
            yield
        finally:
            self._thread.tables = before

    @property
    def _folded(self):
        return getattr(self._thread, "tables", None)

    def _position_tables(self):
        """What each block takes for its positions."""
        if self._folded is None:
            return [self.relative_table()] * self.num_layers
        return [
            {term: tf.convert_to_tensor(one) for term, one in tables.items()} or None
            for tables in self._folded
        ]

    def relative_table(self):
        """The table of relative positions as blocks take it, (r, hidden), or None."""
        if self.relative_norm is None:
            return self.relative_embeddings
        return self.relative_norm(self.relative_embeddings)

    @property
    def relative_positions(self) -> RelativePositions:
        return self.blocks[0].attention.relative_positions

    def compute_output_spec(
        self, x, padding_mask, states=False, skip_last_block=False, training=None
    ):
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not states:
            return output
        count = self.num_layers + (0 if skip_last_block else 1)
        return [keras.KerasTensor(x.shape, output.dtype) for _ in range(count)]

    def get_config(self):
        block = self.blocks[0].get_config()
        for name in ("name", "dtype", "trainable"):
            block.pop(name)
        convolution = self.convolution and self.convolution.get_config()
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "block": block,
            "normalize_relative_embeddings": self.normalize_relative_embeddings,
            "gradient_checkpointing": self.gradient_checkpointing,
            "scan_layers": self.scan_layers,
            "convolution_kernel_size": convolution["kernel_size"] if convolution else 0,
            "convolution_groups": convolution["groups"] if convolution else 1,
            "convolution_activation": (
                convolution["activation"] if convolution else "gelu"
            ),
        }


def _without_lost_gradients(hidden, mask):
    """States (b, l, hidden) as they are; no gradient goes to those of padding.

    Those of a row of padding alone, in a new model, are zeros, whose layer norms each
    multiply a gradient by 1 / sqrt(epsilon), 3,162: two blocks of them overflow
    float16, six float32.
    """
    is_used = token_mask(mask)
    if mask.shape.rank == 3:
        # Nothing looks at it, but it looks at others.
        is_used = tf.logical_or(is_used, tf.reduce_any(mask, axis=2))
    return tf.where(is_used[..., None], hidden, tf.stop_gradient(hidden))
