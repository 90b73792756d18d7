"""The n-gram convolution of DeBERTa v2 xlarge and xxlarge."""

import keras
import tensorflow as tf

from deberta_tf.dropout import Dropout
from deberta_tf.embeddings import table_initializer


@keras.saving.register_keras_serializable("deberta_tf")
class NgramConvolution(keras.layers.Layer):
    """Convolution of the embeddings, added to the first block's output (v2).

    Args:
        kernel_size: int, odd. Width in tokens.
        groups: int.
        activation: Keras activation, after the dropout.
        dropout: float.
        layer_norm_epsilon: float.

    Call arguments:
        embeddings: (b, l, hidden), input of the first block.
        output: (b, l, hidden), output of the first block.
        padding_mask: bool (b, l), True at tokens.

    Returns:
        (b, l, hidden), zero at padding.

    Source: SPEC 2.3.
    """

    def __init__(
        self,
        kernel_size,
        groups=1,
        activation="gelu",
        dropout=0.0,
        layer_norm_epsilon=1e-7,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.groups = groups
        self.activation = keras.activations.get(activation)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="layer_norm"
        )

    def build(self, embeddings_shape):
        hidden_dim = embeddings_shape[-1]
        self.convolution = keras.layers.Conv1D(
            hidden_dim,
            self.kernel_size,
            padding="same",
            groups=self.groups,
            kernel_initializer=table_initializer(),
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build((None, None, hidden_dim))
        self.layer_norm.build((None, None, hidden_dim))
        self.built = True

    def call(self, embeddings, output, padding_mask, training=None):
        mask = tf.cast(padding_mask, self.compute_dtype)[..., None]
        x = self.convolution(embeddings) * mask
        x = self.activation(self.dropout(x, training=training))
        return self.layer_norm(output + x) * mask

    def compute_output_spec(self, embeddings, *args, **kwargs):
        return keras.KerasTensor(embeddings.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout.rate,
            "layer_norm_epsilon": self.layer_norm.epsilon,
        }
