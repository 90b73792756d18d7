"""Classifies two marked spans of a text or a pair of texts: WiC and WSC."""

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.labelled_task import LabelledTask, class_count
from deberta_tf.offsets import tokens_of_spans
from deberta_tf.packing import equally_many, pack_ids, pack_marks
from deberta_tf.preprocessing import DebertaPreprocessor, inputs_of
from deberta_tf.task_heads import SpanPairHead

_SPANS = ("span_starts", "span_ends")


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaSpanClassifierPreprocessor(DebertaPreprocessor):
    """Texts with two spans to rows of ids and the positions of the spans.

    A row is [CLS] text [SEP], or [CLS] text [SEP] text pair [SEP]. What is too long
    loses tokens at the end of its longer segment.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.

    Call arguments:
        x: dict of `text`, strings (b,), `text_pair` the same, where there are pairs,
            and `span_starts` and `span_ends` int (b, 2), characters, the latter
            excluded. Of a pair the first span is one of `text`, the second of
            `text_pair`; else both are of `text`.
        y: int (b,), or None.
        sample_weight: float (b,), or None.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, sequence_length), and `span_positions` (b, 2, 2), first position and last,
        excluded, of each span; both 0 for one that is cut off. Followed by `y` and
        `sample_weight` where given.
    """

    def call(self, x, y=None, sample_weight=None):
        packed = pack_spans(self.tokenizer, x, self.sequence_length)
        inputs = inputs_of(packed, "span_positions")
        return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)


def pack_spans(tokenizer, x, sequence_length=None, max_length=None):
    """dict of int32 tensors: see `DebertaSpanClassifierPreprocessor`."""
    names = [name for name in ("text", "text_pair", *_SPANS) if name in x]
    given = equally_many([tf.convert_to_tensor(x[name]) for name in names])
    x = dict(zip(names, given, strict=True))
    texts = given[: -len(_SPANS)]
    tokens = [tokenizer.tokenize_with_offsets(text) for text in texts]
    lengths = {"sequence_length": sequence_length, "max_length": max_length}
    packed = pack_ids(tokenizer, [ids for ids, _, _ in tokens], **lengths)
    numbers = [
        tf.ragged.range(ids.row_lengths()).with_row_splits_dtype(tf.int64)
        for ids, _, _ in tokens
    ]
    # Which token of its text stands where.
    token = pack_marks(numbers, **lengths)
    positions = []
    for i in range(2):
        segment = min(i, len(texts) - 1)
        spans = (tf.convert_to_tensor(x[name])[:, i : i + 1] for name in _SPANS)
        first, last = tokens_of_spans(*tokens[segment][1:], *spans)
        is_in = (token >= first) & (token < last)
        is_in &= packed["segment_ids"] == segment
        positions.append(_first_and_last(is_in))
    return {**packed, "span_positions": tf.stack(positions, axis=1)}


def _first_and_last(marks):
    """int32 (b, 2): where the marks of rows bool (b, l) begin, and end, excluded."""
    count = tf.reduce_sum(tf.cast(marks, tf.int32), axis=1)
    first = tf.argmax(marks, axis=1, output_type=tf.int32)
    return tf.stack([first, tf.where(count > 0, first + count, 0)], axis=1)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaSpanClassifier(LabelledTask, keras_hub.models.Task):
    """Classifies a text by two spans of it: WiC, WSC.

    Besides those of the backbone, the input `span_positions` int (b, 2, 2) holds the
    first and the last position (excluded) of each span.

    Args:
        backbone: `DebertaBackbone`.
        num_classes: int.
        labels: list of str, names of the classes in the order of the logits.
        dropout: float. Rate before the logits; None: the backbone's.
        preprocessor: `DebertaSpanClassifierPreprocessor`, or None for ids only.

    Returns:
        Logits, float32 (b, num_classes).

    Example:

    >>> task = DebertaSpanClassifier.from_preset("folder", labels=["other", "same"])
    >>> task.predict({
    ...     "text": ["a river bank"], "text_pair": ["the bank lends"],
    ...     "span_starts": [[8, 4]], "span_ends": [[12, 8]],
    ... })

    Source: ours. The official code names a model of WiC and does not hold it, and has
    none of WSC (SPEC 9.2). This is the first token's state beside the means of the
    states of both spans, as SuperGLUE's baselines have them (Wang et al. 2019), then a
    dense layer with GELU as in the official entity heads.
    """

    preprocessor_cls = DebertaSpanClassifierPreprocessor
    foreign_class = None

    def __init__(
        self,
        backbone,
        num_classes=None,
        labels=None,
        dropout=None,
        preprocessor=None,
        **kwargs,
    ):
        head = SpanPairHead(
            class_count(num_classes, labels, at_least=2),
            backbone.hidden_dim,
            dropout=backbone.dropout if dropout is None else dropout,
            dtype=backbone.dtype_policy,
            name="head",
        )
        super().__init__(
            backbone,
            head,
            preprocessor,
            labels,
            extra_inputs={"span_positions": (2, 2)},
            **kwargs,
        )

    def signatures(self):
        """`serving_default`: `text` string (b,), `span_starts` and `span_ends` int32
        (b, 2), characters; `text_pairs`: `text_pair` string (b,) as well. Both to what
        a classifier answers, see `DebertaTextClassifier.signatures`."""

        def answer(*given):
            names = ("text", "text_pair") if len(given) == 4 else ("text",)
            x = dict(zip((*names, *_SPANS), given, strict=True))
            packed = pack_spans(
                self.preprocessor.tokenizer,
                x,
                max_length=self.preprocessor.sequence_length,
            )
            return self.scores_of(self(self.inputs_in(packed), training=False))

        text, pair = (
            tf.TensorSpec([None], tf.string, name=name)
            for name in ("text", "text_pair")
        )
        spans = [tf.TensorSpec([None, 2], tf.int32, name=name) for name in _SPANS]
        return {
            "serving_default": (answer, [text, *spans]),
            "text_pairs": (answer, [text, pair, *spans]),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "dropout": self.head.dropout.rate,
        }
