"""Masked language modelling: the task and its preprocessor."""

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.base_task import DebertaTask
from deberta_tf.heads import MaskedLMHead
from deberta_tf.masking import NgramMasker
from deberta_tf.packing import pack_strings
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaMaskedLMPreprocessor(keras_hub.models.MaskedLMPreprocessor):
    """Raw strings to masked ids: tokenise, pack, mask n-grams of whole words.

    Masks are drawn anew at each call from TensorFlow's global seed. For masks that
    are a function of the step, use `NgramMasker` itself, as the trainer does.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.
        mask_rate: float. Share of the tokens to predict.
        max_ngram: int. Longest span, in words.

    Call arguments:
        x: strings (b,), or a tuple of two for pairs; or one string or pair, and no
            axis b in what is returned.

    Returns:
        (x, mask_ids, mask_weights): x a dict of `token_ids`, `padding_mask`,
        `segment_ids` (b, sequence_length) and `mask_positions` (b, p), all int32;
        `mask_ids` int32 (b, p); `mask_weights` float32 (b, p).
    """

    backbone_cls = DebertaBackbone
    tokenizer_cls = DebertaSentencePieceTokenizer

    def __init__(
        self, tokenizer, sequence_length=512, mask_rate=0.15, max_ngram=3, **kwargs
    ):
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)
        # Else KerasHub takes a tuple of two texts for a text and its label.
        self._call_accepts_labels = False
        self.mask_rate = mask_rate
        self.max_ngram = max_ngram

    def build(self, input_shape):
        # Not before: a loaded tokenizer gets its vocabulary after it is made.
        self.masker = NgramMasker.of_tokenizer(
            self.tokenizer, mask_rate=self.mask_rate, max_ngram=self.max_ngram
        )
        self.built = True

    def call(self, x, y=None, sample_weight=None):
        packed = pack_strings(self.tokenizer, x, self.sequence_length)
        one = packed["token_ids"].shape.rank == 1
        if one:
            packed = {name: value[None] for name, value in packed.items()}
        rows = tf.range(tf.shape(packed["token_ids"], out_type="int64")[0])
        seed = tf.random.uniform([], maxval=2**31 - 1, dtype="int32")
        masked = self.masker(packed["token_ids"], packed["padding_mask"], seed, rows)
        outputs = {**packed, **masked}
        if one:
            outputs = {name: value[0] for name, value in outputs.items()}
        labels, weights = outputs.pop("mask_ids"), outputs.pop("mask_weights")
        return outputs, labels, weights

    def get_config(self):
        config = keras_hub.models.Preprocessor.get_config(self)
        return {
            **config,
            "sequence_length": self.sequence_length,
            "mask_rate": self.mask_rate,
            "max_ngram": self.max_ngram,
        }


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaMaskedLM(DebertaTask, keras_hub.models.MaskedLM):
    """Predicts masked tokens, with the enhanced mask decoder.

    Inputs are those of the backbone and `mask_positions` int (b, p); labels are
    the ids there, int (b, p), and sample weights 1 where an entry counts, 0 where
    it only fills up. Without `mask_positions` every position is decoded.

    Args:
        backbone: `DebertaBackbone`. With `absolute_position_input` its last state is
            decoded directly, else an `EnhancedMaskDecoder` takes the absolute
            positions in and the backbone's last block is shared with it.
        preprocessor: `DebertaMaskedLMPreprocessor`, or None for ids only.

    Returns:
        Logits, float32 (b, p, vocabulary_size).

    Example:

    >>> masked_lm = DebertaMaskedLM(DebertaBackbone(1000, 2, 4, 64, 256))
    >>> masked_lm.fit(dataset_of_ids_labels_weights)
    """

    preprocessor_cls = DebertaMaskedLMPreprocessor

    def __init__(self, backbone, preprocessor=None, **kwargs):
        head = MaskedLMHead(backbone, dtype=backbone.dtype_policy, name="head")
        super().__init__(
            backbone,
            head,
            preprocessor,
            extra_inputs=("mask_positions",),
            skip_last_block=head.decoder is not None,
            **kwargs,
        )

    def compile(
        self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **kwargs
    ):
        """Defaults: Adam 5e-5; cross-entropy over the sum of weights; accuracy."""
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(5e-5)
        if loss == "auto":
            # Keras's default would divide by the entries, filled up ones as well.
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        if weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
        super().compile(optimizer, loss, weighted_metrics=weighted_metrics, **kwargs)
