"""Tasks on ids: of tokens, spans, choices, entities.

They load, run and save; raw inputs and losses of their own are to come.
"""

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.base_task import DebertaTask
from deberta_tf.embeddings import token_mask
from deberta_tf.labelled_task import LabelledTask, check_classes
from deberta_tf.relative_position import dimensions
from deberta_tf.task_heads import EntityHead, SpanHead, TokenClassificationHead
from deberta_tf.tasks import PooledTask, pooled_head

# Of a token that can't be chosen; -inf would give 0 * inf in a cross-entropy.
PADDING_LOGIT = -1e4


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaTokenClassifier(LabelledTask, keras_hub.models.Task):
    """Classifies each token.

    Args:
        backbone: `DebertaBackbone`.
        num_classes: int.
        labels: list of str, names of the classes in the order of the logits.
        hidden_layer: bool. A dense layer with GELU before the logits, as Microsoft's
            entity recognition has; Hugging Face has none.
        dropout: float. Rate before the logits; None: the backbone's.
        preprocessor: None; ids only.

    Returns:
        Logits, float32 (b, l, num_classes).
    """

    @property
    def foreign_class(self):
        return None if self.head.hidden is not None else "ForTokenClassification"

    def __init__(
        self,
        backbone,
        num_classes=None,
        labels=None,
        hidden_layer=False,
        dropout=None,
        preprocessor=None,
        **kwargs,
    ):
        if num_classes is None and labels is not None:
            num_classes = len(labels)
        check_classes(num_classes, labels)
        head = TokenClassificationHead(
            num_classes,
            backbone.hidden_dim,
            hidden_layer=hidden_layer,
            dropout=backbone.dropout if dropout is None else dropout,
            dtype=backbone.dtype_policy,
            name="head",
        )
        self.num_classes = num_classes
        super().__init__(backbone, head, preprocessor, **kwargs)
        self.labels = None if labels is None else list(labels)

    def output_weights(self, inputs):
        return tf.cast(token_mask(inputs["padding_mask"]), tf.float32)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "labels": self.labels,
            "hidden_layer": self.head.hidden is not None,
            "dropout": self.head.dropout.rate,
        }

    @classmethod
    def foreign_arguments(cls, checkpoint, **given):
        arguments = super().foreign_arguments(checkpoint, **given)
        return {**arguments, "hidden_layer": checkpoint.holds("proj.")}


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaQuestionAnswering(DebertaTask, keras_hub.models.Task):
    """Finds the span of a context that answers a question.

    Args:
        backbone: `DebertaBackbone`.
        preprocessor: None; ids only.

    Returns:
        Logits of each token to begin and to end the span, float32 (b, l, 2).
    """

    foreign_class = "ForQuestionAnswering"

    def __init__(self, backbone, preprocessor=None, **kwargs):
        head = SpanHead(backbone.hidden_dim, dtype=backbone.dtype_policy, name="head")
        super().__init__(backbone, head, preprocessor, **kwargs)

    def output_classes(self, logits, inputs):
        real = token_mask(inputs["padding_mask"])[..., None]
        # Of the tokens, one begins the span and one ends it.
        return tf.transpose(tf.where(real, logits, PADDING_LOGIT), [0, 2, 1])

    def output_weights(self, inputs):
        return tf.ones([dimensions(inputs["token_ids"])[0], 2])


class _Rows(keras.layers.Layer):
    """Every choice as a row of its own: (b, c, l) to (b c, l)."""

    def call(self, ids):
        return tf.reshape(ids, [-1, dimensions(ids)[-1]])

    def compute_output_spec(self, ids):
        return keras.KerasTensor((None, ids.shape[-1]), ids.dtype)


class _Choices(keras.layers.Layer):
    """One logit a row, back to those of each example's choices: (b c, 1) to (b, c)."""

    def call(self, logits, ids):
        return tf.reshape(logits, dimensions(ids)[:2])

    def compute_output_spec(self, logits, ids):
        return keras.KerasTensor(ids.shape[:2], logits.dtype)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaMultipleChoice(PooledTask, keras_hub.models.Task):
    """Scores choices, each a row of ids with what it is a choice for.

    The inputs are those of the backbone, int (b, choices, l).

    Args:
        backbone: `DebertaBackbone`.
        dropout: float. Rate before the logits; None: the backbone's.
        pooler_activation: Keras activation.
        preprocessor: None; ids only.
        pooler_dropout: float. Rate before the pooler.

    Returns:
        Logits, float32 (b, choices).
    """

    foreign_class = "ForMultipleChoice"

    def __init__(
        self,
        backbone,
        dropout=None,
        pooler_activation="gelu",
        preprocessor=None,
        pooler_dropout=0.0,
        **kwargs,
    ):
        head = pooled_head(backbone, 1, pooler_activation, dropout, pooler_dropout)
        self.rows, self.choices = _Rows(name="rows"), _Choices(name="choices")
        super().__init__(
            backbone, head, preprocessor, input_shape=(None, None), **kwargs
        )

    def call(self, inputs, training=None, mask=None, perturb=None):
        rows = {name: self.rows(ids) for name, ids in inputs.items()}
        logits = super().call(rows, training=training, perturb=perturb)
        return self.choices(logits, inputs["token_ids"])


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEntityScorer(DebertaTask, keras_hub.models.Task):
    """Scores the entities of a passage as answers to a query (ReCoRD).

    Besides those of the backbone, the input `entity_positions` int (b, entities,
    tokens) holds the positions of each entity's tokens, filled up with 0.

    Args:
        backbone: `DebertaBackbone`.
        dropout: float. Rate before the logits; None: the backbone's.
        preprocessor: None; ids only.

    Returns:
        Logits, float32 (b, entities); -10,000 for an entity without tokens.

    Source: SPEC 9.4.
    """

    foreign_class = None

    def __init__(self, backbone, dropout=None, preprocessor=None, **kwargs):
        head = EntityHead(
            backbone.hidden_dim,
            dropout=backbone.dropout if dropout is None else dropout,
            dtype=backbone.dtype_policy,
            name="head",
        )
        super().__init__(
            backbone,
            head,
            preprocessor,
            extra_inputs={"entity_positions": (None, None)},
            **kwargs,
        )

    def output_classes(self, logits, inputs):
        # Each entity is an answer or not.
        return tf.stack([logits, tf.zeros_like(logits)], axis=-1)

    def output_weights(self, inputs):
        is_there = tf.reduce_any(inputs["entity_positions"] > 0, axis=-1)
        return tf.cast(is_there, tf.float32)

    def get_config(self):
        return {**super().get_config(), "dropout": self.head.dropout.rate}
