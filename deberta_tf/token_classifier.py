"""Classifies words: named entities, parts of speech."""

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.embeddings import token_mask
from deberta_tf.labelled_task import LabelledTask, class_count
from deberta_tf.packing import pack_ids, pack_marks
from deberta_tf.preprocessing import DebertaPreprocessor, as_ragged, inputs_of
from deberta_tf.task_heads import TokenClassificationHead


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaTokenClassifierPreprocessor(DebertaPreprocessor):
    """Sentences of words to rows of ids.

    Each word is tokenised by itself, with a space before it but for the first of a
    sentence. Its class is asked of its first token. What is too long loses
    words at its end.

    Args:
        tokenizer: `DebertaSentencePieceTokenizer` or `DebertaBytePairTokenizer`.
        sequence_length: int. Tokens a row, special ones included.

    Call arguments:
        x: words, string RaggedTensor (b, None), or lists of lists of str.
        y: int RaggedTensor (b, None), the classes of the words; one below 0 does not
            count. Or None.
        sample_weight: None.

    Returns:
        dict of int32 `token_ids`, `padding_mask`, `segment_ids`, each
        (b, sequence_length). With `y` also int32 (b, sequence_length), the class at the
        first token of a word and 0 elsewhere, and float32 weights, 1 where a class
        counts.

    Source: SPEC 9.5.
    """

    def call(self, x, y=None, sample_weight=None):
        if sample_weight is not None:
            raise ValueError("sample_weight must be None: the classes tell which count")
        words = as_ragged(x)
        packed = pack_words(self.tokenizer, words, self.sequence_length)
        inputs = inputs_of(packed)
        if y is None:
            return inputs
        labels = as_ragged(y)
        tf.debugging.assert_equal(
            words.row_lengths(), labels.row_lengths(), "a class for every word"
        )
        # A row without a word has a place to look at.
        labels = tf.cast(labels, tf.int32).to_tensor(-1)
        labels = tf.pad(labels, [[0, 0], [0, 1]], constant_values=-1)
        word = packed["word"]
        at = tf.where(word >= 0, word, 0)
        label = tf.where(word >= 0, tf.gather(labels, at, batch_dims=1), -1)
        return inputs, tf.maximum(label, 0), tf.cast(label >= 0, tf.float32)


def pack_words(tokenizer, words, sequence_length=None, max_length=None, begins=None):
    """Packs sentences of words, see `DebertaTokenClassifierPreprocessor`.

    Args:
        tokenizer: `DebertaTokenizer`.
        words: string RaggedTensor (b, None), or a dense one, or lists.
        sequence_length, max_length: int or None, as `pack_segments` takes them.
        begins: bool RaggedTensor (b, None), which words begin a sentence, and so have
            no space before them. None: the first of each row.

    Returns:
        dict as `pack_segments` gives it, and int32 `word` (b, l): the word that a token
        is the first of, -1 for others.
    """
    words = as_ragged(words)
    number = tf.ragged.range(words.row_lengths()).with_row_splits_dtype(tf.int64)
    begins = number.values == 0 if begins is None else begins.values
    space = tf.where(begins, "", " ")
    ids = tokenizer.tokenize(tf.strings.join([space, words.values]))
    lengths = {"sequence_length": sequence_length, "max_length": max_length}
    packed = pack_ids(tokenizer, [_joined(words, ids)], **lengths)
    of_word = tf.gather(tf.cast(number.values, tf.int32), ids.value_rowids())
    at = tf.range(tf.size(ids.values, out_type=tf.int64))
    is_first = at == tf.gather(ids.row_starts(), ids.value_rowids())
    first = ids.with_values(tf.where(is_first, of_word, -1))
    return {**packed, "word": pack_marks([_joined(words, first)], **lengths)}


def _joined(words, tokens):
    """The tokens of words (n, None) as those of their sentences (b, None)."""
    return words.with_values(tokens).merge_dims(1, 2)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaTokenClassifier(LabelledTask, keras_hub.models.Task):
    """Classifies each word of a sentence, at its first token.

    Args:
        backbone: `DebertaBackbone`.
        num_classes: int.
        labels: list of str, names of the classes in the order of the logits.
        hidden_layer: bool. A dense layer with GELU before the logits, as Microsoft's
            entity recognition has; Hugging Face has none.
        dropout: float. Rate before the logits; None: the backbone's.
        preprocessor: `DebertaTokenClassifierPreprocessor`, or None for ids only.

    Returns:
        Logits, float32 (b, l, num_classes).

    Example:

    >>> tagger = DebertaTokenClassifier.from_preset("folder", labels=["O", "B", "I"])
    >>> tagger.fit([["Ada", "Lovelace", "wrote"], ["No", "name"]], [[1, 2, 0], [0, 0]])
    >>> tagger.tag([["Charles", "Babbage"]])
    """

    preprocessor_cls = DebertaTokenClassifierPreprocessor

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
        head = TokenClassificationHead(
            class_count(num_classes, labels, at_least=2),
            backbone.hidden_dim,
            hidden_layer=hidden_layer,
            dropout=backbone.dropout if dropout is None else dropout,
            dtype=backbone.dtype_policy,
            name="head",
        )
        super().__init__(backbone, head, preprocessor, labels, **kwargs)

    def default_loss(self):
        return keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )

    def default_metrics(self):
        return {
            "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")]
        }

    def map_token_outputs(self, function, outputs, inputs):
        return function(outputs)

    def output_weights(self, inputs):
        return tf.cast(token_mask(inputs["padding_mask"]), tf.float32)

    def tag(self, sentences, batch_size=32):
        """The class of every word.

        Args:
            sentences: list of lists of str, the words.
            batch_size: int. Sentences at a time.

        Returns:
            list of lists of str, names of classes ("0", "1" and so on where the task
            has none). A word without a token has the class "O" where there is one,
            else the first.

        Raises:
            ValueError: if the task has no preprocessor.
        """
        self.require_preprocessor("tag words")
        if isinstance(sentences, str) or any(isinstance(s, str) for s in sentences):
            raise ValueError(f"sentences must be lists of words. Received: {sentences}")
        names = self.class_names
        absent = names.index("O") if "O" in names else 0
        tags = [np.full(len(sentence), absent) for sentence in sentences]
        # Of a sentence what is not tagged yet: a long one goes on in another row.
        todo = [(number, 0) for number, sentence in enumerate(sentences) if sentence]
        while todo:
            part, todo = todo[:batch_size], todo[batch_size:]
            words = [sentences[number][start:] for number, start in part]
            begins = [
                [start + i == 0 for i in range(len(row))]
                for (_, start), row in zip(part, words, strict=True)
            ]
            for (number, start), (at, found) in zip(
                part, self._classes_of_rows(words, begins), strict=True
            ):
                tags[number][start + at] = found
                end = start + at[-1] + 1 if len(at) else len(sentences[number])
                if end < len(sentences[number]):
                    todo.append((number, end))
        return [[names[index] for index in row] for row in tags]

    def _classes_of_rows(self, words, begins):
        """For each row of words those that have a token in it, and their classes."""
        packed = pack_words(
            self.preprocessor.tokenizer,
            tf.ragged.constant(words, tf.string),
            self.preprocessor.sequence_length,
            begins=tf.ragged.constant(begins, tf.bool),
        )
        classes = self.predict_on_batch(self.inputs_in(packed)).argmax(axis=-1)
        for row, word in zip(classes, packed["word"].numpy(), strict=True):
            yield word[word >= 0], row[word >= 0]

    def signatures(self):
        """`serving_default`: `words` string (b, w), filled up with "", to `labels`
        string (b, w) and `scores` float32 (b, w), their probabilities; "" and 0 for
        what fills up or is cut off."""
        # What nothing is scattered to is 0.
        names = tf.constant(["", *self.class_names])

        def tag(words):
            lengths = _lengths_without_filling(words)
            sentences = tf.RaggedTensor.from_tensor(words, lengths=lengths)
            packed = pack_words(
                self.preprocessor.tokenizer,
                sentences,
                max_length=self.preprocessor.sequence_length,
            )
            shares = tf.nn.softmax(self(self.inputs_in(packed), training=False))
            # Each word from the one place of its first token.
            places = tf.where(packed["word"] >= 0)
            word = tf.cast(tf.gather_nd(packed["word"], places), tf.int64)
            at = tf.stack([places[:, 0], word], axis=1)

            def of_words(values):
                shape = tf.shape(words, out_type=tf.int64)
                return tf.scatter_nd(at, tf.gather_nd(values, places), shape)

            return {
                "labels": tf.gather(names, of_words(1 + tf.argmax(shares, axis=-1))),
                "scores": of_words(tf.reduce_max(shares, axis=-1)),
            }

        words = tf.TensorSpec([None, None], tf.string, name="words")
        return {"serving_default": (tag, [words])}

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_layer": self.head.hidden is not None,
            "dropout": self.head.dropout.rate,
        }

    @classmethod
    def foreign_arguments(cls, checkpoint, **given):
        arguments = super().foreign_arguments(checkpoint, **given)
        return {**arguments, "hidden_layer": checkpoint.holds("proj.")}


def _lengths_without_filling(words):
    """int64 (b,): the words of each row up to the last that is not ""."""
    place = 1 + tf.range(tf.shape(words, out_type=tf.int64)[1])
    # Of no words at all the largest place is a negative number.
    return tf.maximum(tf.reduce_max(tf.where(words != "", place, 0), axis=1), 0)
