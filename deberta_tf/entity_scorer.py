"""Scores the entities of a passage as answers to a query: ReCoRD."""

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.base_task import DebertaTask
from deberta_tf.offsets import tokens_of_spans
from deberta_tf.packing import equally_many
from deberta_tf.preprocessing import (
    DebertaPreprocessor,
    as_ragged,
    as_tensors,
    check_batch,
    inputs_of,
)
from deberta_tf.task_heads import EntityHead
from deberta_tf.windows import in_chunks, pack_windows, positions_of

PLACEHOLDER = "@placeholder"


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEntityScorerPreprocessor(DebertaPreprocessor):
    """Passages with entities, and queries with a gap, to rows of ids.

    A row is [CLS] passage [SEP] query [SEP], with one [MASK] for "@placeholder". Of an
    example it is the first window of the passage; all windows are `windows`. A query is
    cut to half of a row.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.
        overlap: int. Tokens that two windows of a passage share.
        max_entities: int. Entities of an example; those beyond have no place.
        max_entity_length: int. Tokens of an entity; those beyond are not read.

    Call arguments:
        x: dict of `passage` and `query`, strings (b,), and `entity_starts` and
            `entity_ends`, int RaggedTensors (b, None) or lists: the characters of the
            entities in the passage, `entity_ends` excluded.
        y: int RaggedTensor (b, None), 1 for an entity that answers, 0 for others; or
            None.
        sample_weight: None.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, sequence_length), and `entity_positions` (b, max_entities,
        max_entity_length), the positions of an entity's tokens filled up with 0, all 0
        for one that is not in the row. With `y` also int32 (b, max_entities) and
        float32 weights, 1 for entities in the row.

    Source: SPEC 9.4.
    """

    def __init__(
        self,
        tokenizer,
        sequence_length=512,
        overlap=256,
        max_entities=110,
        max_entity_length=180,
        **kwargs,
    ):
        super().__init__(tokenizer, sequence_length, **kwargs)
        self.overlap = overlap
        self.max_entities = max_entities
        self.max_entity_length = max_entity_length

    def call(self, x, y=None, sample_weight=None):
        if sample_weight is not None:
            raise ValueError("sample_weight must be None: entities in the row count")
        packed = self._pack(x, lambda steps, rooms: 0 * steps)
        inputs = inputs_of(packed, "entity_positions")
        if y is None:
            return inputs
        labels = _dense(y, self.max_entities)
        is_there = tf.reduce_any(inputs["entity_positions"] > 0, axis=-1)
        return inputs, labels, tf.cast(is_there, tf.float32)

    def windows(self, x, dynamic=False):
        """All windows of the passages.

        Args:
            x: as the preprocessor is called with.
            dynamic: bool. Rows as long as the longest of the batch.

        Returns:
            dict of int32 `token_ids`, `padding_mask`, `segment_ids` (w, l),
            `entity_positions` (w, max_entities, max_entity_length); `entity_spans`
            (w, max_entities, 2), the first position of each entity and its last,
            excluded, or 0; and `example` (w,), the row of the passages.
        """
        return self._pack(x, None, dynamic)

    def _pack(self, x, choose, dynamic=False):
        tokenizer = self.tokenizer
        check_batch(passage=x["passage"], query=x["query"])
        ids, starts, ends = tokenizer.tokenize_with_offsets(x["passage"])
        limit = "max_length" if dynamic else "sequence_length"
        packed = pack_windows(
            tokenizer,
            _with_mask(tokenizer, x["query"]),
            ids,
            self.overlap,
            windowed_first=True,
            choose=choose,
            **{limit: self.sequence_length},
        )
        first, last = tokens_of_spans(
            starts,
            ends,
            *(
                _dense(x[name], self.max_entities)
                for name in ("entity_starts", "entity_ends")
            ),
        )
        rows = packed["example"]
        start, end = positions_of(
            packed["token"], tf.gather(first, rows), tf.gather(last, rows)
        )
        spans = tf.stack([start, end], axis=-1)
        return {
            **packed,
            "entity_spans": spans,
            "entity_positions": self.positions(spans),
        }

    def positions(self, spans):
        """`entity_positions` int32 (…, max_entity_length) of first positions and last
        ones, excluded, int32 (…, 2)."""
        at = spans[..., :1] + tf.range(self.max_entity_length)
        return tf.where(at < spans[..., 1:], at, 0)

    def get_config(self):
        return {
            **super().get_config(),
            "overlap": self.overlap,
            "max_entities": self.max_entities,
            "max_entity_length": self.max_entity_length,
        }


def _with_mask(tokenizer, queries):
    """int32 RaggedTensor (b, None): ids of queries, [MASK] for their first gap."""
    parts = tf.strings.split(tf.convert_to_tensor(queries, tf.string), PLACEHOLDER)
    # Of a query without a gap nothing but the text before it is there.
    before = parts[:, :1].to_tensor(shape=[None, 1])[:, 0]
    after = tf.strings.reduce_join(parts[:, 1:], axis=1, separator=PLACEHOLDER)
    mask = tf.fill([parts.nrows(), 1], tf.constant(tokenizer.mask_token_id, tf.int32))
    has_gap = parts.row_lengths() > 1
    mask = tf.RaggedTensor.from_tensor(mask, lengths=tf.cast(has_gap, tf.int64))
    ids = [tokenizer.tokenize(part) for part in (before, after)]
    return tf.concat([ids[0], mask, ids[1]], axis=1)


def _dense(numbers, width):
    """int32 (b, width), cut or filled up with 0."""
    return tf.cast(as_ragged(numbers), tf.int32).to_tensor(0, shape=[None, width])


@keras.saving.register_keras_serializable("deberta_tf")
class EntityLoss(keras.losses.Loss):
    """Cross-entropy of each entity being an answer or not.

    Of labels 0 or 1 (b, e) and logits float32 (b, e).
    """

    def __init__(self, reduction="mean_with_sample_weight", **kwargs):
        super().__init__(reduction=reduction, **kwargs)

    def call(self, y_true, y_pred):
        labels = tf.cast(y_true, y_pred.dtype)
        return tf.nn.sigmoid_cross_entropy_with_logits(labels, y_pred)


@keras.saving.register_keras_serializable("deberta_tf")
def entity_accuracy(y_true, y_pred):
    """float32 (b, e): 1 where an entity is rightly judged."""
    return tf.cast((y_pred > 0) == (tf.cast(y_true, tf.int32) > 0), tf.float32)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaEntityScorer(DebertaTask, keras_hub.models.Task):
    """Scores the entities of a passage as answers to a query (ReCoRD).

    Besides those of the backbone, the input `entity_positions` int (b, entities,
    tokens) holds the positions of each entity's tokens, filled up with 0.

    Args:
        backbone: `DebertaBackbone`.
        dropout: float. Rate before the logits; None: the backbone's.
        preprocessor: `DebertaEntityScorerPreprocessor`, or None for ids only.

    Returns:
        Logits, float32 (b, entities); -10,000 for an entity without tokens.

    Source: SPEC 9.4.
    """

    preprocessor_cls = DebertaEntityScorerPreprocessor
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

    def default_loss(self):
        return EntityLoss()

    def default_metrics(self):
        metric = keras.metrics.MeanMetricWrapper(entity_accuracy, name="accuracy")
        return {"weighted_metrics": [metric]}

    def output_classes(self, logits, inputs):
        # Each entity is an answer or not.
        return tf.stack([logits, tf.zeros_like(logits)], axis=-1)

    def output_weights(self, inputs):
        is_there = tf.reduce_any(inputs["entity_positions"] > 0, axis=-1)
        return tf.cast(is_there, tf.float32)

    def score_entities(self, x, batch_size=32):
        """The score of every entity, the mean of its windows' log-probabilities.

        Args:
            x: dict as the preprocessor takes it.
            batch_size: int. Passages, and windows of them, at a time.

        Returns:
            float32 (b, max_entities); -inf for an entity that is in no window.

        Raises:
            ValueError: if the task has no preprocessor.
        """
        self.require_preprocessor("score entities")
        x = as_tensors(x)
        check_batch(passage=x["passage"], query=x["query"])
        scores = []
        for start in range(0, len(x["passage"]), batch_size):
            some = {name: one[start : start + batch_size] for name, one in x.items()}
            windows = self.preprocessor.windows(some)
            logits = self.predict(self.inputs_in(windows), batch_size, verbose=0)
            scores.append(
                mean_over_windows(
                    tf.convert_to_tensor(logits),
                    windows["entity_spans"][..., 1] > 0,
                    windows["example"],
                )
            )
        return np.concatenate(scores)

    def signatures(self):
        """`serving_default`: `passage` and `query` string (b,), `entity_starts` and
        `entity_ends` int32 (b, e), equal where they fill up, to `scores` float32
        (b, e), the probability of each entity to be an answer, and `entity` int64 (b,),
        the likeliest; 0 for an entity that has no place."""

        def score(passage, query, entity_starts, entity_ends):
            names = ("passage", "query", "entity_starts", "entity_ends")
            # Of one shape, or none is made of both.
            spans = tf.unstack(tf.stack([entity_starts, entity_ends]))
            given = equally_many([passage, query, *spans])
            x = dict(zip(names, given, strict=True))
            windows = self.preprocessor.windows(x, dynamic=True)
            logits = in_chunks(self, self.inputs_in(windows))
            is_there = windows["entity_spans"][..., 1] > 0
            scores = mean_over_windows(logits, is_there, windows["example"])
            scores = tf.exp(scores)
            width = tf.shape(entity_starts)[1]
            scores = scores[:, :width]
            scores = tf.pad(scores, [[0, 0], [0, width - tf.shape(scores)[1]]])
            return {"entity": tf.argmax(scores, axis=-1), "scores": scores}

        texts = [
            tf.TensorSpec([None], tf.string, name=name) for name in ("passage", "query")
        ]
        spans = [
            tf.TensorSpec([None, None], tf.int32, name=name)
            for name in ("entity_starts", "entity_ends")
        ]
        return {"serving_default": (score, [*texts, *spans])}

    def get_config(self):
        return {**super().get_config(), "dropout": self.head.dropout.rate}


def mean_over_windows(logits, is_there, example):
    """float32 (b, e): means of log-sigmoids over the windows that have an entity.

    Args:
        logits: float32 (w, e).
        is_there: bool (w, e), which entities are in which window.
        example: int (w,), which passage a window is of, ascending from 0.
    """
    there = tf.cast(is_there, tf.float32)
    total = tf.math.segment_sum(tf.math.log_sigmoid(logits) * there, example)
    count = tf.math.segment_sum(there, example)
    return tf.where(count > 0, tf.math.divide_no_nan(total, count), -float("inf"))
