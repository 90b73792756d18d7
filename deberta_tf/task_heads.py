"""What fine-tuning puts on the encoder: the heads of tasks.

A head is called with the encoder's hidden states, embeddings first, and the inputs
of the model. Einsum letters: `b` batch, `l` position, `e` entity, `s` span, `h` hidden.
"""

import keras
import tensorflow as tf

from deberta_tf.dropout import Dropout
from deberta_tf.heads import make_dense
from deberta_tf.relative_position import dimensions


def make_dropout(rate, name, policy):
    return Dropout(rate, dtype=policy, name=name)


@keras.saving.register_keras_serializable("deberta_tf")
class ClassificationHead(keras.layers.Layer):
    """Pooler over the first token, then logits.

    Args:
        num_classes: int. 1: a regression score.
        hidden_dim: int. Width of the pooler.
        activation: Keras activation of the pooler.
        dropout: float. Rate before the logits.
        pooler_dropout: float. Rate before the pooler.

    Call arguments:
        states: hidden states, the last one is pooled.
        inputs: dict of the model's inputs; nothing of it is read.

    Returns:
        float32 (b, num_classes).

    Source: SPEC 2.4.
    """

    def __init__(
        self,
        num_classes,
        hidden_dim,
        activation="gelu",
        dropout=0.0,
        pooler_dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        policy = self.dtype_policy
        self.pooler_dropout = make_dropout(pooler_dropout, "pooler_dropout", policy)
        self.pooler = make_dense(hidden_dim, "pooler", policy, activation)
        self.dropout = make_dropout(dropout, "dropout", policy)
        self.logits = make_dense(num_classes, "logits", policy)

    def build(self, *_):
        self.pooler.build((None, self.hidden_dim))
        self.logits.build((None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        first = self.pooler_dropout(states[-1][:, 0], training=training)
        pooled = self.dropout(self.pooler(first), training=training)
        return tf.cast(self.logits(pooled), "float32")

    def compute_output_spec(self, states, inputs, training=None):
        return keras.KerasTensor((states[-1].shape[0], self.num_classes), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "hidden_dim": self.hidden_dim,
            "activation": keras.activations.serialize(self.pooler.activation),
            "dropout": self.dropout.rate,
            "pooler_dropout": self.pooler_dropout.rate,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class TokenClassificationHead(keras.layers.Layer):
    """Logits of every token.

    Args:
        num_classes: int.
        hidden_dim: int. Width of the states, and of the hidden layer.
        hidden_layer: bool. A dense layer with gelu before the logits, as in the
            official NER model. Hugging Face's has none.
        dropout: float. Rate before the logits.

    Call arguments:
        states: hidden states, the last (b, l, hidden) is read.
        inputs: dict of the model's inputs; nothing of it is read.

    Returns:
        float32 (b, l, num_classes). What stands at padding is of no meaning.

    Source: SPEC 9.5.
    """

    def __init__(
        self, num_classes, hidden_dim, hidden_layer=False, dropout=0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        policy = self.dtype_policy
        self.hidden = None
        if hidden_layer:
            self.hidden = make_dense(hidden_dim, "hidden", policy, "gelu")
        self.dropout = make_dropout(dropout, "dropout", policy)
        self.logits = make_dense(num_classes, "logits", policy)

    def build(self, *_):
        for layer in (self.hidden, self.logits):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        x = states[-1] if self.hidden is None else self.hidden(states[-1])
        return tf.cast(self.logits(self.dropout(x, training=training)), "float32")

    def compute_output_spec(self, states, inputs, training=None):
        shape = (*states[-1].shape[:2], self.num_classes)
        return keras.KerasTensor(shape, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "hidden_dim": self.hidden_dim,
            "hidden_layer": self.hidden is not None,
            "dropout": self.dropout.rate,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class SpanHead(keras.layers.Layer):
    """Logits of a span's start and end at every token.

    Args:
        hidden_dim: int. Width of the states.

    Call arguments:
        states: hidden states, the last (b, l, hidden) is read.
        inputs: dict of the model's inputs; nothing of it is read.

    Returns:
        float32 (b, l, 2), start then end. Padding is not masked out.

    Source: SPEC 8 (`qa_outputs`), 9.2 (SQuAD).
    """

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.span = make_dense(2, "span", self.dtype_policy)

    def build(self, *_):
        self.span.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        return tf.cast(self.span(states[-1]), "float32")

    def compute_output_spec(self, states, inputs, training=None):
        return keras.KerasTensor((*states[-1].shape[:2], 2), "float32")

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable("deberta_tf")
class EntityHead(keras.layers.Layer):
    """Scores entities that stand in the text, as ReCoRD asks for.

    An entity is the mean of its tokens' states, weighted by a softmax of their
    products with the first token's.

    Args:
        hidden_dim: int. Width of the states, and of the hidden layer.
        dropout: float. Rate before the logits.

    Call arguments:
        states: hidden states, the last (b, l, hidden) is read.
        inputs: dict with `entity_positions` int (b, e, s): where the tokens of an
            entity stand, each once; 0: unused.

    Returns:
        float32 (b, e); -10000 for an entity without tokens.

    Source: SPEC 9.4.
    """

    def __init__(self, hidden_dim, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        policy = self.dtype_policy
        self.hidden = make_dense(hidden_dim, "hidden", policy, "gelu")
        self.dropout = make_dropout(dropout, "dropout", policy)
        self.logits = make_dense(1, "logits", policy)

    def build(self, *_):
        self.hidden.build((None, None, self.hidden_dim))
        self.logits.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        tokens = _entity_tokens(inputs["entity_positions"], dimensions(states[-1])[1])
        entities = self._mean_states(states[-1], tokens)
        x = self.dropout(self.hidden(entities), training=training)
        logits = tf.cast(self.logits(x)[..., 0], "float32")
        return tf.where(tf.reduce_any(tokens, axis=-1), logits, -10000.0)

    def _mean_states(self, states, tokens):
        exact = tf.cast(states, "float32")
        scores = tf.einsum("blh,bh->bl", exact, exact[:, 0]) * self.hidden_dim**-0.5
        weights = tf.nn.softmax(tf.where(tokens, scores[:, None, :], -10000.0))
        return tf.einsum("bel,blh->beh", tf.cast(weights, states.dtype), states)

    def compute_output_spec(self, states, inputs, training=None):
        return keras.KerasTensor(inputs["entity_positions"].shape[:2], "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout.rate,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class SpanPairHead(keras.layers.Layer):
    """Logits of two spans of a row: the first token's state and the means of theirs.

    Args:
        num_classes: int.
        hidden_dim: int. Width of the states, and of the hidden layer.
        dropout: float. Rate before the logits.

    Call arguments:
        states: hidden states, the last (b, l, hidden) is read.
        inputs: dict with `span_positions` int (b, 2, 2): first position and last,
            excluded, of each span. The mean of a span without tokens is 0.

    Returns:
        float32 (b, num_classes).
    """

    def __init__(self, num_classes, hidden_dim, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        policy = self.dtype_policy
        self.hidden = make_dense(hidden_dim, "hidden", policy, "gelu")
        self.dropout = make_dropout(dropout, "dropout", policy)
        self.logits = make_dense(num_classes, "logits", policy)

    def build(self, *_):
        self.hidden.build((None, 3 * self.hidden_dim))
        self.logits.build((None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        last = states[-1]
        place = tf.range(dimensions(last)[1])
        first, end = (inputs["span_positions"][..., i, None] for i in range(2))
        is_in = tf.cast((place >= first) & (place < end), "float32")
        share = tf.math.divide_no_nan(is_in, tf.reduce_sum(is_in, -1, keepdims=True))
        means = tf.einsum("bsl,blh->bsh", tf.cast(share, last.dtype), last)
        batch = dimensions(last)[0]
        means = tf.reshape(means, [batch, 2 * self.hidden_dim])
        x = self.hidden(tf.concat([last[:, 0], means], axis=-1))
        return tf.cast(self.logits(self.dropout(x, training=training)), "float32")

    def compute_output_spec(self, states, inputs, training=None):
        return keras.KerasTensor((states[-1].shape[0], self.num_classes), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout.rate,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class ReplacedTokenHead(keras.layers.Layer):
    """Logits of each token being one that the generator put there.

    Every token sees the first one: its state is added before the layer norm.

    Args:
        hidden_dim: int.
        activation: Keras activation of the dense layer.
        layer_norm_epsilon: float.

    Call arguments:
        states: hidden states, the last (b, l, hidden) is read.
        inputs: dict of the model's inputs; nothing of it is read.

    Returns:
        float32 (b, l). What stands at padding is of no meaning.

    Source: SPEC 4.1: layer norm, dense, activation, in this order.
    """

    def __init__(
        self, hidden_dim, activation="gelu", layer_norm_epsilon=1e-7, **kwargs
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="layer_norm"
        )
        self.dense = make_dense(hidden_dim, "dense", self.dtype_policy, activation)
        self.logits = make_dense(1, "logits", self.dtype_policy)

    def build(self, *_):
        for layer in (self.layer_norm, self.dense, self.logits):
            layer.build((None, None, self.hidden_dim))
        self.built = True

    def call(self, states, inputs, training=None):
        last = states[-1]
        x = self.dense(self.layer_norm(last[:, :1] + last))
        return tf.cast(self.logits(x)[..., 0], "float32")

    def compute_output_spec(self, states, inputs, training=None):
        return keras.KerasTensor(states[-1].shape[:2], "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": keras.activations.serialize(self.dense.activation),
            "layer_norm_epsilon": self.layer_norm.epsilon,
        }


def _entity_tokens(positions, length):
    """Which tokens belong to which entity, bool (b, e, l)."""
    # Over the text, not over the tokens of an entity: their states, gathered, would
    # be (b, e, s, h), and TPU gathers row by row.
    hits = tf.one_hot(positions, length, True, False)  # (b, e, s, l)
    return tf.reduce_any(hits & (positions > 0)[..., None], axis=2)
