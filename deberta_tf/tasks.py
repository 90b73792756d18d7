"""Fine-tuning tasks on the encoder: the text classifier and its preprocessor."""

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.base_task import DebertaTask
from deberta_tf.checkpoints import configs
from deberta_tf.labelled_task import LabelledTask, class_count
from deberta_tf.packing import pack_strings
from deberta_tf.serving import example_feature
from deberta_tf.task_heads import ClassificationHead
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaTextClassifierPreprocessor(keras_hub.models.TextClassifierPreprocessor):
    """Raw strings, or pairs of them, to rows of ids.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included. What is longer
            loses tokens at the end of its longest segment.

    Call arguments:
        x: strings (b,), or a tuple of two for pairs; or one string or pair, and no
            axis b in what is returned.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, sequence_length); followed by `y` and `sample_weight` where given.
    """

    backbone_cls = DebertaBackbone
    tokenizer_cls = DebertaSentencePieceTokenizer

    def __init__(self, tokenizer, sequence_length=512, **kwargs):
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)
        # Else KerasHub takes a tuple of two texts for a text and its label.
        self._call_accepts_labels = False

    def build(self, input_shape):
        self.built = True

    def call(self, x, y=None, sample_weight=None):
        x = pack_strings(self.tokenizer, x, self.sequence_length)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def get_config(self):
        config = keras_hub.models.Preprocessor.get_config(self)
        return {**config, "sequence_length": self.sequence_length}


class PooledTask(DebertaTask):
    """Base of the tasks whose head is a `ClassificationHead`."""

    def get_config(self):
        return {
            **super().get_config(),
            "dropout": self.head.dropout.rate,
            "pooler_activation": keras.activations.serialize(
                self.head.pooler.activation
            ),
            "pooler_dropout": self.head.pooler_dropout.rate,
        }

    def foreign_entries(self):
        return {
            **super().foreign_entries(),
            "pooler_hidden_act": configs.write_activation(
                keras.activations.serialize(self.head.pooler.activation)
            ),
            "pooler_hidden_size": self.backbone.hidden_dim,
            "pooler_dropout": self.head.pooler_dropout.rate,
            "cls_dropout": self.head.dropout.rate,
        }

    @classmethod
    def foreign_arguments(cls, checkpoint, **given):
        pooler = configs.read_pooler(checkpoint.config)
        return {**super().foreign_arguments(checkpoint, **given), **pooler}


def pooled_head(backbone, num_classes, activation, dropout, pooler_dropout):
    """The `ClassificationHead` of a task; `dropout=None`: the backbone's."""
    return ClassificationHead(
        num_classes,
        backbone.hidden_dim,
        activation=activation,
        dropout=backbone.dropout if dropout is None else dropout,
        pooler_dropout=pooler_dropout,
        dtype=backbone.dtype_policy,
        name="head",
    )


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaTextClassifier(LabelledTask, PooledTask, keras_hub.models.TextClassifier):
    """Classifies a text or a pair of texts, or scores it.

    Args:
        backbone: `DebertaBackbone`.
        num_classes: int. 1: regression.
        labels: list of str, names of the classes in the order of the logits.
        dropout: float. Rate before the logits; None: the backbone's.
        pooler_activation: Keras activation.
        preprocessor: `DebertaTextClassifierPreprocessor`, or None for ids only.
        pooler_dropout: float. Rate before the pooler.

    Returns:
        Logits, float32 (b, num_classes).

    Example:

    >>> classifier = DebertaTextClassifier(DebertaBackbone(1000, 2, 4, 64, 256), 3)
    >>> classifier.fit(dataset_of_ids_labels)
    """

    preprocessor_cls = DebertaTextClassifierPreprocessor
    foreign_class = "ForSequenceClassification"

    def __init__(
        self,
        backbone,
        num_classes=None,
        labels=None,
        dropout=None,
        pooler_activation="gelu",
        preprocessor=None,
        pooler_dropout=0.0,
        **kwargs,
    ):
        count = class_count(num_classes, labels)
        head = pooled_head(backbone, count, pooler_activation, dropout, pooler_dropout)
        super().__init__(backbone, head, preprocessor, labels, **kwargs)

    def default_loss(self):
        if self.num_classes == 1:
            return keras.losses.MeanSquaredError()
        return super().default_loss()

    def default_metrics(self):
        if self.num_classes == 1:
            error = keras.metrics.RootMeanSquaredError("root_mean_squared_error")
            return {"metrics": [error]}
        return super().default_metrics()

    def signatures(self):
        """`serving_default`: `text` string (b,), and `text_pairs`: `text` and
        `text_pair`; both to `label` string (b,), `score` float32 (b,), the label's
        probability, and all `labels` string and their `scores` float32, both (b,
        num_classes). A regression gives `score` alone.

        `classify` and `classify_pairs`, of a regression `regress` and `regress_pairs`,
        are for TF Serving's calls of these names: from `tf.train.Example`s with the
        features `text` and `text_pair` to `classes` and `scores`, or `outputs`."""

        def answer(*texts):
            packed = pack_strings(
                self.preprocessor.tokenizer,
                texts,
                max_length=self.preprocessor.sequence_length,
            )
            return self.scores_of(self(self.inputs_in(packed), training=False))

        def convention(*names):
            def answer_examples(inputs):
                found = answer(*example_feature(inputs, *names))
                if self.num_classes == 1:
                    return {tf.saved_model.REGRESS_OUTPUTS: found["score"]}
                return {
                    tf.saved_model.CLASSIFY_OUTPUT_CLASSES: found["labels"],
                    tf.saved_model.CLASSIFY_OUTPUT_SCORES: found["scores"],
                }

            return answer_examples

        text = tf.TensorSpec([None], tf.string, name="text")
        pair = tf.TensorSpec([None], tf.string, name="text_pair")
        examples = tf.TensorSpec([None], tf.string, tf.saved_model.CLASSIFY_INPUTS)
        method = "regress" if self.num_classes == 1 else "classify"
        return {
            "serving_default": (answer, [text]),
            "text_pairs": (answer, [text, pair]),
            method: (convention("text"), [examples]),
            f"{method}_pairs": (convention("text", "text_pair"), [examples]),
        }
