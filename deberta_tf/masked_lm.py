"""Masked language modelling: the task and its preprocessor."""

import dataclasses
import os
import warnings

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.base_task import DebertaTask
from deberta_tf.checkpoints import folders, names
from deberta_tf.embeddings import token_mask
from deberta_tf.fill_mask import fill_masks
from deberta_tf.heads import MaskedLMHead
from deberta_tf.masking import NgramMasker
from deberta_tf.packing import pack_strings
from deberta_tf.token_prediction import TokenAccuracy, TokenLoss, predict_tokens
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer

# Second copies in Hugging Face's older head -> standard names.
_COPIES = {
    "weight": "embeddings.word_embeddings.weight",
    "bias": "lm_predictions.lm_head.bias",
}


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
        enhanced_mask_decoder: bool. False: the last state is decoded in any case, as
            Hugging Face does; None: as said above.

    Returns:
        Logits, float32 (b, p, vocabulary_size).

    Example:

    >>> masked_lm = DebertaMaskedLM(DebertaBackbone(1000, 2, 4, 64, 256))
    >>> masked_lm.fit(dataset_of_ids_labels_weights)
    """

    preprocessor_cls = DebertaMaskedLMPreprocessor
    foreign_class = "ForMaskedLM"

    def __init__(
        self, backbone, preprocessor=None, enhanced_mask_decoder=None, **kwargs
    ):
        head = MaskedLMHead(
            backbone, enhanced_mask_decoder, dtype=backbone.dtype_policy, name="head"
        )
        super().__init__(
            backbone,
            head,
            preprocessor,
            extra_inputs={"mask_positions": (None,)},
            skip_last_block=head.decoder is not None,
            **kwargs,
        )

    @classmethod
    def from_preset(cls, preset, load_weights=True, generator=False, **kwargs):
        """`DebertaTask.from_preset`, of replaced-token checkpoints too.

        Args:
            preset: str.
            load_weights: bool.
            generator: bool. Load the generator that a v3 folder holds beside its
                discriminator, the one that is trained to fill masks (SPEC 3.4).
            kwargs: constructor arguments.
        """
        if not generator:
            return super().from_preset(preset, load_weights=load_weights, **kwargs)
        checkpoint = folders.open_checkpoint(
            os.fspath(preset), load_weights, generator=True
        )
        if checkpoint is None:
            raise ValueError(
                "generator=True is for Hugging Face / Microsoft folders. Received: "
                f"{preset!r}, a preset of ours"
            )
        return cls.from_checkpoint(checkpoint, load_weights, **kwargs)

    @classmethod
    def foreign_arguments(cls, checkpoint, enhanced_mask_decoder=None, **_):
        if checkpoint.holds("mask_predictions."):
            warnings.warn(
                "The checkpoint is a discriminator of replaced tokens: it was not "
                "trained to fill masks. Pass generator=True for its generator",
                stacklevel=4,
            )
        has_positions = checkpoint.holds(names.DECODER_POSITIONS_NAME)
        if checkpoint.holds("lm_predictions.") and not has_positions:
            if enhanced_mask_decoder is None:
                warnings.warn(
                    "The checkpoint has a masked-LM head, and no absolute positions "
                    "for an enhanced mask decoder: its last state is decoded, as "
                    "Hugging Face does",
                    stacklevel=4,
                )
                return {"enhanced_mask_decoder": False}
        return {}

    def fill_mask(self, texts, top_k=5):
        """What may stand at each [MASK] of some texts.

        Args:
            texts: list of str, or one str. Each holds "[MASK]" once or more.
            top_k: int.

        Returns:
            For each text, for each mask in it, a list of the `top_k` likeliest
            tokens: (str, probability). Of one str, the list of its masks.

        Raises:
            ValueError: if a text has no mask, or the task no preprocessor.
        """
        if isinstance(texts, str):
            return fill_masks(self, [texts], top_k)[0]
        return fill_masks(self, texts, top_k)

    def map_token_outputs(self, function, outputs, inputs):
        # Of masks, there is an axis of these.
        return outputs if "mask_positions" in inputs else function(outputs)

    def output_weights(self, inputs):
        if "mask_positions" not in inputs:
            return tf.cast(token_mask(inputs["padding_mask"]), tf.float32)
        # Position 0, where [CLS] stands, fills up.
        return tf.cast(inputs["mask_positions"] > 0, tf.float32)

    def get_config(self):
        decoder = self.head.decoder is not None
        return {**super().get_config(), "enhanced_mask_decoder": decoder}

    def load_checkpoint(self, checkpoint):
        super().load_checkpoint(_tied(checkpoint))

    def foreign_entries(self):
        # The newer head of Hugging Face, named as Microsoft's, can't change the width.
        backbone = self.backbone
        return {"legacy": backbone.embedding_dim != backbone.hidden_dim}

    def default_loss(self):
        return TokenLoss()

    def default_metrics(self):
        return {"weighted_metrics": [TokenAccuracy()]}

    def compile(self, optimizer="auto", loss="auto", **kwargs):
        """`DebertaTask.compile`.

        With the loss and metrics of the task, `fit` and `evaluate` make logits of some
        positions at a time (`predict_tokens`); others get all of them.
        """
        super().compile(optimizer, loss, **kwargs)
        metrics = (kwargs.get(name) for name in ("metrics", "weighted_metrics"))
        given = keras.tree.flatten([loss, *metrics])
        self._wants_logits = bool(kwargs.get("loss_weights")) or not all(
            one in ("auto", None) or isinstance(one, (TokenLoss, TokenAccuracy))
            for one in given
        )

    def loss_and_outputs(self, data, training):
        if self._wants_logits:
            return super().loss_and_outputs(data, training)
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is None:
            weights = tf.ones(tf.shape(y))
        found = self.predict_tokens(x, y, weights, training)
        total = tf.reduce_sum(tf.cast(weights, "float32"))
        loss = tf.math.divide_no_nan(found.loss, total)
        return tf.add_n([loss, *self.losses]), found.ids

    def predict_tokens(self, inputs, labels, weights, training, draw=None, seed=None):
        """`token_prediction.predict_tokens` of what the model makes of `inputs`."""
        x = self(inputs, training=training, logits=False)
        return predict_tokens(x, *self.head.tied, labels, weights, training, draw, seed)


def _tied(checkpoint):
    """A checkpoint whose logits are tied to its token table.

    Hugging Face's older head may hold table and bias a second time.

    Raises:
        ValueError: if these differ from the first.
    """
    tensors = dict(checkpoint.tensors)
    for copy, name in _COPIES.items():
        tensor = tensors.pop(f"cls.predictions.decoder.{copy}", None)
        if tensor is None:
            continue
        if not np.array_equal(tensors.setdefault(name, tensor).read(), tensor.read()):
            raise ValueError(
                f"cls.predictions.decoder.{copy} differs from {name}: a checkpoint of "
                "tie_word_embeddings=false can't be read, for the logits are tied"
            )
    return dataclasses.replace(checkpoint, tensors=tensors)
