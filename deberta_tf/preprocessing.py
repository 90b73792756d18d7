"""What the preprocessors of tasks share."""

import keras_hub
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer

# What the models take of a packed row.
INPUTS = ("token_ids", "padding_mask", "segment_ids")


class DebertaPreprocessor(keras_hub.models.Preprocessor):
    """Base of the preprocessors of raw inputs that are more than texts or pairs.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.
    """

    backbone_cls = DebertaBackbone
    tokenizer_cls = DebertaSentencePieceTokenizer

    def __init__(self, tokenizer, sequence_length=512, **kwargs):
        super().__init__(**kwargs)
        # Else KerasHub takes a tuple of two inputs for an input and its label.
        self._call_accepts_labels = False
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length

    def build(self, *_):
        self.built = True

    def get_config(self):
        return {**super().get_config(), "sequence_length": self.sequence_length}


def inputs_of(packed, *more):
    """The part of a packed row that a model takes."""
    return {name: packed[name] for name in (*INPUTS, *more)}


def as_tensors(nest):
    """Lists of lists as tensors, ragged where these differ in length; all else as it
    is.

    Tuples and dicts are of several inputs, lists are an input.
    """
    if isinstance(nest, dict):
        return {name: as_tensors(one) for name, one in nest.items()}
    if isinstance(nest, tuple):
        return tuple(as_tensors(one) for one in nest)
    if isinstance(nest, list) and nest and isinstance(nest[0], (list, tuple)):
        rows = [list(row) for row in nest]
        if len({len(row) for row in rows}) == 1:
            return tf.constant(rows)
        return tf.ragged.constant(rows)
    return nest
