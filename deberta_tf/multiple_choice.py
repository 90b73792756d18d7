"""Chooses one of several texts: RACE, SWAG, COPA."""

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.packing import equally_many, pack_ids
from deberta_tf.preprocessing import DebertaPreprocessor, inputs_of
from deberta_tf.relative_position import dimensions
from deberta_tf.tasks import PooledTask, pooled_head


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaMultipleChoicePreprocessor(DebertaPreprocessor):
    """Texts with choices to rows of ids, one for each choice.

    A row is [CLS] text [SEP] choice [SEP]. What is too long loses tokens at the end of
    its longer segment.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.
        max_choice_length: int. Tokens of a choice at most, of which the first are kept;
            None: no limit of its own.

    Call arguments:
        x: tuple (texts, choices): strings (b,), or (b, c) where a choice has its own,
            and strings (b, c).
        y: int (b,), which choice is right; or None.
        sample_weight: float (b,), or None.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, c, sequence_length); followed by `y` and `sample_weight` where given.
    """

    def __init__(
        self, tokenizer, sequence_length=512, max_choice_length=None, **kwargs
    ):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.max_choice_length = max_choice_length

    def call(self, x, y=None, sample_weight=None):
        rows = self.pack(*x, sequence_length=self.sequence_length)
        return keras.utils.pack_x_y_sample_weight(inputs_of(rows), y, sample_weight)

    def pack(self, texts, choices, **lengths):
        """Rows of choices, dict of int32 (b, c, l).

        Args:
            texts: strings (b,) or (b, c).
            choices: strings (b, c).
            lengths: `sequence_length` or `max_length`, as `pack_segments` takes them.

        Raises:
            ValueError: if they have other axes.
        """
        choices = tf.convert_to_tensor(choices, tf.string)
        texts = tf.convert_to_tensor(texts, tf.string)
        if choices.shape.rank != 2 or texts.shape.rank not in (1, 2):
            raise ValueError(
                "choices must be (b, c) strings, the texts (b,) or (b, c). Received "
                f"shapes: {texts.shape}, {choices.shape}"
            )
        texts, choices = equally_many([texts, choices])
        if texts.shape.rank == 1:
            texts = tf.broadcast_to(texts[:, tf.newaxis], tf.shape(choices))
        tokenizer, shape = self.tokenizer, dimensions(choices)
        first, second = (
            tokenizer.tokenize(tf.reshape(one, [-1])) for one in (texts, choices)
        )
        packed = pack_ids(
            tokenizer, [first, second[:, : self.max_choice_length]], **lengths
        )
        return {
            name: tf.reshape(row, [*shape, dimensions(row)[-1]])
            for name, row in packed.items()
        }

    def get_config(self):
        return {**super().get_config(), "max_choice_length": self.max_choice_length}


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
        preprocessor: `DebertaMultipleChoicePreprocessor`, or None for ids only.
        pooler_dropout: float. Rate before the pooler.

    Returns:
        Logits, float32 (b, choices).

    Example:

    >>> task = DebertaMultipleChoice.from_preset("folder")
    >>> task.fit((["It rained."], [["We got wet.", "We got tanned."]]), [0])
    >>> task.predict((["It snowed."], [["It was cold.", "It was hot."]]))

    Source: SPEC 9.3. COPA has no head of its own in the official code, which trains its
    choices as pairs of two classes; the softmax over both is what RACE has.
    """

    preprocessor_cls = DebertaMultipleChoicePreprocessor
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

    def signatures(self):
        """`serving_default`: `text` string (b,) and `choices` string (b, c) to `choice`
        int64 (b,), the likeliest, and `scores` float32 (b, c), probabilities."""

        def choose(text, choices):
            packed = self.preprocessor.pack(
                text, choices, max_length=self.preprocessor.sequence_length
            )
            scores = tf.nn.softmax(self(self.inputs_in(packed), training=False))
            return {"choice": tf.argmax(scores, axis=-1), "scores": scores}

        text = tf.TensorSpec([None], tf.string, name="text")
        choices = tf.TensorSpec([None, None], tf.string, name="choices")
        return {"serving_default": (choose, [text, choices])}
