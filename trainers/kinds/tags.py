"""Tags of words: entities, parts of speech."""

import itertools

import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.entity_metrics import entity_scores, is_entity_tag
from deberta_tf.metrics import accuracy
from deberta_tf.token_classifier import (
    DebertaTokenClassifier,
    DebertaTokenClassifierPreprocessor,
    pack_words,
)
from trainers.kinds.encoded import Encoded, answer_column, in_chunks, softmax

# What a word is that has no token, or that hides its tag.
OUTSIDE = "O"


def make_task(setup, load, tokenizer):
    return load(
        DebertaTokenClassifier,
        labels=setup.names,
        hidden_layer=True,
        dropout=setup.config.classifier_dropout,
        preprocessor=DebertaTokenClassifierPreprocessor(
            tokenizer, setup.config.sequence_length
        ),
    )


def encode(setup, task, examples):
    """Rows of whole sentences of one document, as many as it holds (SPEC 9.5)."""
    columns = examples.columns
    tokenizer, length = task.preprocessor.tokenizer, setup.config.sequence_length
    sentences = columns["words"]
    counts = _token_counts(tokenizer, sentences)
    rows = rows_of_documents(counts, columns["document"], length - 2)

    def pack(rows):
        words = [[sentences[s][w] for s, w in row] for row in rows]
        begins = [[w == 0 for _, w in row] for row in rows]
        return pack_words(
            tokenizer,
            tf.ragged.constant(words, tf.string),
            length,
            begins=tf.ragged.constant(begins, tf.bool),
        )

    packed = in_chunks(pack, rows)
    word = packed["word"]
    targets = weights = None
    if "tags" in columns:
        targets = np.zeros_like(word)
        ids = _tag_ids(setup, examples)
        for row, places in enumerate(rows):
            at = word[row] >= 0
            of_row = np.array([ids[s][w] for s, w in places], np.int32)
            targets[row, at] = of_row[word[row, at]]
        weights = (word >= 0).astype(np.float32)
    return Encoded(task.inputs_in(packed), targets, weights, places=(rows, word))


def _token_counts(tokenizer, sentences):
    """For each sentence the number of tokens of each word."""
    lengths = [len(sentence) for sentence in sentences]
    words = [
        " " * (index > 0) + word
        for sentence in sentences
        for index, word in enumerate(sentence)
    ]
    counts = in_chunks(
        lambda part: {"count": tokenizer.tokenize(tf.constant(part)).row_lengths()},
        words,
    )["count"]
    return np.split(counts, np.cumsum(lengths)[:-1])


def rows_of_documents(counts, documents, budget):
    """Which words stand in which row.

    Consecutive sentences of a document share a row while they fit; one that does not
    fit in a row goes on in the next.

    Args:
        counts: for each sentence an int array, the tokens of its words.
        documents: list of int, one a sentence.
        budget: int. Tokens a row.

    Returns:
        list of rows, each a list of (sentence, word).
    """
    rows, room, document = [], 0, None
    for sentence, own in enumerate(counts):
        if documents[sentence] != document or own.sum() > room:
            rows.append([])
            room, document = budget, documents[sentence]
        for word, count in enumerate(own.tolist()):
            if count > room and rows[-1]:
                rows.append([])
                room = budget
            rows[-1].append((sentence, word))
            room -= count
    return [row for row in rows if row]


def _tag_ids(setup, examples):
    ids = {name: index for index, name in enumerate(setup.names)}
    found = []
    for number, tags in enumerate(answer_column(setup, examples), 1):
        for tag in tags:
            if tag not in ids:
                raise files.UsageError(
                    f"{examples.source} has tag {tag!r} in sentence {number}; the tags "
                    f"are {', '.join(map(repr, setup.names))}"
                )
        found.append([ids[tag] for tag in tags])
    return found


def answers(setup, outputs, encoded, examples):
    """Tags of every word of every sentence."""
    rows, word = encoded.places
    names = setup.names
    absent = OUTSIDE if OUTSIDE in names else names[0]
    tags = [[absent] * len(words) for words in examples.columns["words"]]
    shares = [[{absent: 1.0} for _ in words] for words in examples.columns["words"]]
    for row, places, logits in zip(word, rows, outputs, strict=False):
        at = np.nonzero(row >= 0)[0]
        for position, share in zip(at, softmax(logits[at]), strict=True):
            sentence, index = places[row[position]]
            tags[sentence][index] = names[int(share.argmax())]
            shares[sentence][index] = _likely(names, share)
    last = rows[min(len(outputs), len(rows)) - 1][-1][0] + 1
    return [
        {"id": name, "prediction": own, "scores": scores}
        for name, own, scores in zip(
            examples.columns["id"][:last], tags, shares, strict=False
        )
    ]


def _likely(names, share):
    """The five likeliest tags: of all, files would be mostly zeros."""
    order = np.argsort(-share, kind="stable")[:5]
    return {names[i]: round(float(share[i]), 6) for i in order}


def score(setup, answers, examples):
    """Accuracy of words; of entities also precision, recall and F1."""
    found = [answer["prediction"] for answer in answers]
    wanted = answer_column(setup, examples)[: len(found)]
    words = (list(itertools.chain.from_iterable(rows)) for rows in (found, wanted))
    scores = {"accuracy": accuracy(*words)}
    if all(map(is_entity_tag, setup.names)):
        entities = entity_scores(found, wanted)
        scores |= {name: entities[name] for name in ("f1", "precision", "recall")}
    return scores
