"""What stands on the encoder: the enhanced mask decoder and the heads of tasks.

A head is called with the encoder's hidden states, embeddings first, and the inputs
of the model.
"""

import keras
import tensorflow as tf

from deberta_tf.dense import Dense
from deberta_tf.embeddings import check_absolute_length, table_initializer
from deberta_tf.relative_position import dimensions, select_rows
from deberta_tf.token_prediction import logits_of


@keras.saving.register_keras_serializable("deberta_tf")
class EnhancedMaskDecoder(keras.layers.Layer):
    """Decodes masked tokens with absolute positions (section 3.2 of the paper).

    The first query is the absolute position plus the memory, the state before the
    last block; keys and values are always made of the memory. The last block of
    the encoder, its weights shared, runs `num_steps` times.

    Args:
        num_positions: int. Rows of the absolute-position table.
        embedding_dim: int. Width of the table.
        num_steps: int. Runs of the last block; 2 in every published model.

    Call arguments:
        memory: (b, l, hidden), state of the block before the last.
        padding_mask: (b, l) or (b, l, l).
        encoder: `DebertaEncoder`, whose `project_memory` and `last_block` are called.
        project: callable from the table's width to that of the memory.
        mask_positions: int (b, p), positions to decode; None: all.

    Returns:
        (b, p, hidden), or (b, l, hidden) for all positions.

    Source: SPEC 3.1. Queries do not look at each other, so decoding some
    positions only is exact. A table narrower than the hidden states is projected
    like tokens are: our extension.
    """

    def __init__(self, num_positions, embedding_dim, num_steps=2, **kwargs):
        super().__init__(**kwargs)
        self.num_positions = num_positions
        self.embedding_dim = embedding_dim
        self.num_steps = num_steps
        self.position_embedding = keras.layers.Embedding(
            num_positions,
            embedding_dim,
            embeddings_initializer=table_initializer(),
            dtype=self.dtype_policy,
            name="position_embedding",
        )

    def build(self, memory_shape):
        self.position_embedding.build((None, None))
        self.built = True

    def call(
        self,
        memory,
        padding_mask,
        encoder,
        project,
        mask_positions=None,
        training=None,
    ):
        length = dimensions(memory)[1]
        check_absolute_length(length, self.num_positions)
        at = tf.range(length) if mask_positions is None else mask_positions
        query = project(self.position_embedding(at))
        if mask_positions is None:
            query += memory
        else:
            query += select_rows(memory, mask_positions)
        keys_and_values = encoder.project_memory(memory)
        for _ in range(self.num_steps):
            query = encoder.last_block(
                query,
                keys_and_values,
                padding_mask,
                query_positions=mask_positions,
                training=training,
            )
        return query

    def get_config(self):
        return {
            **super().get_config(),
            "num_positions": self.num_positions,
            "embedding_dim": self.embedding_dim,
            "num_steps": self.num_steps,
        }


def make_dense(units, name, policy, activation=None):
    """A dense layer with the initial weights of SPEC 2.5."""
    return Dense(
        units,
        activation=activation,
        kernel_initializer=table_initializer(),
        dtype=policy,
        name=name,
    )


class MaskedLMHead(keras.layers.Layer):
    """Logits over the vocabulary, tied to the token table.

    Args:
        backbone: `DebertaBackbone`, whose token table and last block are shared.
        enhanced_mask_decoder: bool. Whether the states come from an
            `EnhancedMaskDecoder` that shares the encoder's last block; False: the last
            state is decoded, as Hugging Face does. None: where the encoder has no
            absolute positions at its input.

    Call arguments:
        states: hidden states, embeddings first; with a decoder the last may be
            left out.
        inputs: dict with `padding_mask` and, to decode some positions only,
            `mask_positions` int (b, p).
        logits: bool. False: what the token table is multiplied with, (b, p, width of
            the table) in place of logits.

    Returns:
        float32 (b, p, vocabulary), or (b, l, vocabulary) without `mask_positions`.

    Source: SPEC 3.1, 3.2.
    """

    def __init__(self, backbone, enhanced_mask_decoder=None, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.decoder = None
        if enhanced_mask_decoder is None:
            enhanced_mask_decoder = not backbone.absolute_position_input
        if enhanced_mask_decoder and backbone.absolute_position_input:
            raise ValueError(
                "Absolute positions come in once. Received: enhanced_mask_decoder="
                "True, a backbone with absolute_position_input=True"
            )
        if enhanced_mask_decoder:
            self.decoder = EnhancedMaskDecoder(
                backbone.max_sequence_length,
                backbone.embedding_dim,
                dtype=self.dtype_policy,
                name="decoder",
            )
        self.dense = make_dense(
            backbone.embedding_dim, "dense", self.dtype_policy, backbone.activation
        )
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=backbone.layer_norm_epsilon,
            dtype=self.dtype_policy,
            name="layer_norm",
        )

    def build(self, *_):
        backbone = self.backbone
        if self.decoder is not None:
            self.decoder.build((None, None, backbone.hidden_dim))
        self.dense.build((None, None, backbone.hidden_dim))
        self.layer_norm.build((None, None, backbone.embedding_dim))
        self.bias = self.add_weight(
            shape=(backbone.vocabulary_size,), initializer="zeros", name="bias"
        )
        self.built = True

    def call(self, states, inputs, training=None, logits=True):
        x = self._decoded(states, inputs, training)
        x = self.layer_norm(self.dense(x))
        return logits_of(x, *self.tied) if logits else x

    @property
    def tied(self):
        """The token table and the biases of its rows."""
        return self.backbone.token_embedding.embeddings, self.bias

    def _decoded(self, states, inputs, training):
        positions = inputs.get("mask_positions")
        num_layers = self.backbone.num_layers
        if self.decoder is not None:
            return self.decoder(
                states[num_layers - 1],
                inputs["padding_mask"],
                encoder=self.backbone.encoder,
                project=self.backbone.embeddings.project,
                mask_positions=positions,
                training=training,
            )
        last = states[num_layers]
        return last if positions is None else select_rows(last, positions)

    def compute_output_spec(self, states, inputs, training=None, logits=True):
        rows = inputs.get("mask_positions", inputs["token_ids"]).shape
        return keras.KerasTensor((*rows, self.backbone.vocabulary_size), "float32")
