"""What the preprocessors of tasks share."""

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer

# What the models take of a packed row.
INPUTS = ("token_ids", "padding_mask", "segment_ids")
# What holds all examples, as KerasHub takes them; datasets and others give batches.
ARRAYS = (list, tuple, dict, np.ndarray, tf.Tensor, tf.RaggedTensor)


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
    """Lists of lists or arrays as tensors, ragged where these differ in length; all
    else as it is.

    Tuples and dicts are of several inputs, lists are an input, as in KerasHub, whose
    own function for it is private and makes a tensor of everything.
    """
    if isinstance(nest, dict):
        return {name: as_tensors(one) for name, one in nest.items()}
    if isinstance(nest, tuple):
        return tuple(as_tensors(one) for one in nest)
    if not isinstance(nest, list) or not nest or not _is_row(nest[0]):
        return nest
    rows = [list(row) for row in nest]
    if len({len(row) for row in rows}) == 1 and rows[0]:
        return tf.constant(rows)
    return tf.ragged.constant(rows, None if any(rows) else tf.string)


def as_dataset(x, y=None, sample_weight=None):
    """`tf.data.Dataset` of single examples, of arrays and tensors."""
    samples = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    return tf.data.Dataset.from_tensor_slices(samples)


def as_ragged(rows):
    """RaggedTensor (b, None) of rows that are lists, or a tensor, dense or ragged."""
    rows = as_tensors(rows)
    if isinstance(rows, tf.RaggedTensor):
        return rows
    return tf.RaggedTensor.from_tensor(tf.convert_to_tensor(rows))


def _is_row(one):
    return isinstance(one, (list, tuple)) or (isinstance(one, np.ndarray) and one.ndim)


def check_batch(**columns):
    """Refuses columns that are no batches (b,) of equally many strings.

    Raises:
        ValueError: it names them, and what they are.
    """
    shapes = {
        name: (
            (len(column),)
            if isinstance(column, list)
            else tuple(getattr(column, "shape", ()))
        )
        for name, column in columns.items()
    }
    if (
        any(len(shape) != 1 for shape in shapes.values())
        or len({shape[0] for shape in shapes.values()} - {None}) > 1
    ):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{' and '.join(columns)} must be batches of equally many strings. "
            f"Received shapes: {listed}"
        )
