"""Answers questions by spans of a context: SQuAD 1.1 and 2.0."""

import collections

import keras
import keras_hub
import tensorflow as tf

from deberta_tf.base_task import DebertaTask
from deberta_tf.embeddings import token_mask
from deberta_tf.offsets import tokens_of_spans
from deberta_tf.preprocessing import DebertaPreprocessor, check_batch, inputs_of
from deberta_tf.relative_position import dimensions
from deberta_tf.task_heads import SpanHead
from deberta_tf.windows import (
    best_rows,
    best_spans,
    in_chunks,
    pack_windows,
    positions_of,
    window_of,
)

# Of a token that can't be chosen; -inf would give 0 * inf in a cross-entropy.
PADDING_LOGIT = -1e4

Answer = collections.namedtuple("Answer", "text start end score no_answer_score")
"""A span of a context: its text; its characters, `end` excluded; the sum of its logits;
and by how much "no answer" scores more. The text "" is no answer, and 0 its span."""


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaQuestionAnsweringPreprocessor(DebertaPreprocessor):
    """Questions and contexts to rows of ids, answers to positions in them.

    A row is [CLS] question [SEP] context [SEP], of an example one row: of a context
    that is too long the first window that holds the answer, without an answer the
    first. All windows are `windows`. A question is cut to half of a row.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.
        overlap: int. Tokens that two windows of a context share.

    Call arguments:
        x: tuple (questions, contexts), strings (b,).
        y: int (b, 2), the characters of the answer in its context, the second excluded;
            two equal numbers: there is none. Or None.
        sample_weight: float (b,), or None.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, sequence_length); with `y` also the positions of the answer's first and last
        token, int32 (b, 2), 0 (that of [CLS]) where it is not in the row.
    """

    def __init__(self, tokenizer, sequence_length=384, overlap=128, **kwargs):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.overlap = overlap

    def call(self, x, y=None, sample_weight=None):
        check_batch(questions=x[0], contexts=x[1])
        context = self.tokenizer.tokenize_with_offsets(x[1])
        if y is None:
            packed = self._pack(x[0], context, lambda steps, rooms: 0 * steps)
            return keras.utils.pack_x_y_sample_weight(inputs_of(packed))
        first, last = _answer_tokens(context, y)

        def choose(steps, rooms):
            return window_of(first, last, steps, rooms)

        packed = self._pack(x[0], context, choose)
        labels = _answer_positions(packed, first, last)
        return keras.utils.pack_x_y_sample_weight(
            inputs_of(packed), labels, sample_weight
        )

    def windows(self, questions, contexts, y=None, dynamic=False):
        """All windows of the contexts.

        Args:
            questions, contexts: strings (b,).
            y: int (b, 2), as the preprocessor is called with; or None.
            dynamic: bool. Rows as long as the longest of the batch.

        Returns:
            dict of int32 `token_ids`, `padding_mask`, `segment_ids`, and `starts` and
            `ends`, the characters of each token in its context, -1 where it is none of
            it, all (w, l); `example` (w,), the row of the contexts; and with `y` also
            `answer` (w, 2), the positions of the first and the last token of the
            answer, 0 in a window that has not all of it.
        """
        check_batch(questions=questions, contexts=contexts)
        context = self.tokenizer.tokenize_with_offsets(contexts)
        packed = self._pack(questions, context, None, dynamic)
        packed |= _characters_of(packed, *context[1:])
        if y is not None:
            rows = packed["example"]
            tokens = (tf.gather(one, rows) for one in _answer_tokens(context, y))
            packed["answer"] = _answer_positions(packed, *tokens)
        return packed

    def _pack(self, questions, context, choose, dynamic=False):
        limit = "max_length" if dynamic else "sequence_length"
        return pack_windows(
            self.tokenizer,
            self.tokenizer.tokenize(questions),
            context[0],
            self.overlap,
            choose=choose,
            **{limit: self.sequence_length},
        )

    def get_config(self):
        return {**super().get_config(), "overlap": self.overlap}


def _answer_tokens(context, y):
    """(first, last), int32 (b,), tokens of the answers; `last` excluded."""
    y = tf.convert_to_tensor(y)
    first, last = tokens_of_spans(*context[1:], y[:, :1], y[:, 1:])
    return first[:, 0], last[:, 0]


def _answer_positions(packed, first, last):
    """int32 (w, 2): positions of the first token and the last."""
    start, end = positions_of(packed["token"], first[:, None], last[:, None])
    return tf.concat([start, tf.maximum(end - 1, 0)], axis=1)


def _characters_of(packed, starts, ends):
    """{"starts", "ends"}: the characters of the tokens of windows, -1 for others.

    Args:
        packed: as `pack_windows` gives it.
        starts, ends: int32 RaggedTensors (b, None), of the text's tokens.
    """
    token, rows = packed["token"], packed["example"]
    is_there = token >= 0
    at = tf.cast(tf.gather(starts.row_starts(), rows), tf.int32)[:, tf.newaxis] + token
    at = tf.where(is_there, at, 0)
    # One more, for texts without a token.
    values = {
        "starts": tf.concat([starts.values, [-1]], axis=0),
        "ends": tf.concat([ends.values, [-1]], axis=0),
    }
    return {
        name: tf.where(is_there, tf.gather(one, at), -1) for name, one in values.items()
    }


@keras.saving.register_keras_serializable("deberta_tf")
class SpanLoss(keras.losses.Loss):
    """Mean of the cross-entropies of a span's start and of its end.

    Of labels int (b, 2), positions of the first and the last token, and logits
    float32 (b, l, 2).
    """

    def call(self, y_true, y_pred):
        labels = tf.cast(y_true, tf.int32)
        logits = tf.transpose(y_pred, [0, 2, 1])
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), axis=-1
        )


@keras.saving.register_keras_serializable("deberta_tf")
def span_accuracy(y_true, y_pred):
    """float32 (b,): 1 where the likeliest start and end are those of the label."""
    found = tf.argmax(y_pred, axis=1, output_type=tf.int32)
    same = found == tf.cast(y_true, tf.int32)
    return tf.cast(tf.reduce_all(same, axis=-1), tf.float32)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaQuestionAnswering(DebertaTask, keras_hub.models.Task):
    """Finds the span of a context that answers a question.

    The likeliest span is that of the largest sum of the logits of its start and its
    end, over all windows of the context. "No answer" scores what [CLS] does, at its
    least over the windows.

    Args:
        backbone: `DebertaBackbone`.
        preprocessor: `DebertaQuestionAnsweringPreprocessor`, or None for ids only.
        no_answer_threshold: float. A question whose `no_answer_score`, of "no answer"
            less that of the likeliest span, is above it has no answer (SQuAD 2.0).
            None: every question has one (SQuAD 1.1).
        max_answer_length: int, tokens.

    Returns:
        Logits of each token to begin and to end the span, float32 (b, l, 2).

    Example:

    >>> task = DebertaQuestionAnswering.from_preset("folder", no_answer_threshold=0.0)
    >>> task.fit((["Who wrote?"], ["Ada Lovelace wrote."]), [[0, 12]])
    >>> task.answer(["Who wrote?"], ["Ada Lovelace wrote."])

    Source: Devlin et al. 2019, section 4.2 and 4.3; SPEC 9.2.
    """

    preprocessor_cls = DebertaQuestionAnsweringPreprocessor
    foreign_class = "ForQuestionAnswering"

    def __init__(
        self,
        backbone,
        preprocessor=None,
        no_answer_threshold=None,
        max_answer_length=30,
        **kwargs,
    ):
        if max_answer_length < 1:
            raise ValueError(
                f"max_answer_length must be at least 1. Received: {max_answer_length}"
            )
        head = SpanHead(backbone.hidden_dim, dtype=backbone.dtype_policy, name="head")
        super().__init__(backbone, head, preprocessor, **kwargs)
        self.no_answer_threshold = no_answer_threshold
        self.max_answer_length = max_answer_length

    def default_loss(self):
        return SpanLoss()

    def default_metrics(self):
        metric = keras.metrics.MeanMetricWrapper(span_accuracy, name="accuracy")
        return {"metrics": [metric]}

    def output_classes(self, logits, inputs):
        real = token_mask(inputs["padding_mask"])[..., None]
        # Of the tokens, one begins the span and one ends it.
        return tf.transpose(tf.where(real, logits, PADDING_LOGIT), [0, 2, 1])

    def map_token_outputs(self, function, outputs, inputs):
        return function(outputs)

    def output_weights(self, inputs):
        return tf.ones([dimensions(inputs["token_ids"])[0], 2])

    def answer(self, questions, contexts, batch_size=32):
        """The likeliest answer of every question.

        Args:
            questions, contexts: lists of str.
            batch_size: int. Questions, and windows of their contexts, at a time.

        Returns:
            list of `Answer`, (text, start, end, score, no_answer_score).

        Raises:
            ValueError: if the task has no preprocessor, or there are not as many
                questions as contexts.
        """
        self.require_preprocessor("answer questions")
        check_batch(questions=questions, contexts=contexts)
        answers = []
        for at in range(0, len(questions), batch_size):
            some = contexts[at : at + batch_size]
            windows = self.preprocessor.windows(questions[at : at + batch_size], some)
            logits = self.predict(self.inputs_in(windows), batch_size, verbose=0)
            logits = tf.convert_to_tensor(logits)
            found = {
                name: value.numpy().tolist()
                for name, value in self._spans_of(logits, windows).items()
            }
            for i, context in enumerate(some):
                start, end = found["start"][i], found["end"][i]
                scores = found["score"][i], found["no_answer_score"][i]
                answers.append(Answer(context[start:end], start, end, *scores))
        return answers

    def _spans_of(self, logits, windows):
        """{"start", "end", "score", "no_answer_score"} (b,) of logits of windows."""
        example = windows["example"]
        # No token of spaces alone: its text would be that of no answer.
        is_word = windows["ends"] > windows["starts"]
        start, end, score = best_spans(logits, is_word, self.max_answer_length)
        nothing = tf.math.segment_min(tf.reduce_sum(logits[:, 0], axis=-1), example)
        row = best_rows(score[:, 0], example)
        first, last, score = (
            tf.gather(one[:, 0], row) for one in (start, end - 1, score)
        )
        begin, finish = (
            tf.gather(tf.gather(windows[name], row), at, batch_dims=1)
            for name, at in (("starts", first), ("ends", last))
        )
        margin = nothing - score
        # A context without a word has no span.
        is_answer = finish > begin
        if self.no_answer_threshold is not None:
            is_answer &= margin <= self.no_answer_threshold
        return {
            "start": tf.where(is_answer, begin, 0),
            "end": tf.where(is_answer, finish, 0),
            "score": score,
            "no_answer_score": margin,
        }

    def signatures(self):
        """`serving_default`: `question` and `context` string (b,) to `answer` string
        (b,), "" for none; `start` and `end` int32 (b,), characters, `end` excluded; and
        `score` and `no_answer_score` float32 (b,), see `Answer`."""

        def answer(question, context):
            windows = self.preprocessor.windows(question, context, dynamic=True)
            logits = in_chunks(self, self.inputs_in(windows))
            found = self._spans_of(logits, windows)
            text = tf.strings.substr(
                context,
                found["start"],
                found["end"] - found["start"],
                unit="UTF8_CHAR",
            )
            return {"answer": text, **found}

        question, context = (
            tf.TensorSpec([None], tf.string, name=name)
            for name in ("question", "context")
        )
        return {"serving_default": (answer, [question, context])}

    def get_config(self):
        return {
            **super().get_config(),
            "no_answer_threshold": self.no_answer_threshold,
            "max_answer_length": self.max_answer_length,
        }
