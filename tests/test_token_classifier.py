"""Classes of words: which token they stand at, what is learned, and tagged."""

import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from tests.served_tasks import SENTENCES
from tests.small_models import make_backbone, randomize

TAGS = [[0, 1, 0, 2, 0], [1], [0, 2, 0, 0, 1, 2, 0]]


@pytest.fixture(scope="module")
def preprocessor(sentencepiece_proto):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    return deberta_tf.DebertaTokenClassifierPreprocessor(tokenizer, 24)


def make_task(preprocessor, **kwargs):
    return deberta_tf.DebertaTokenClassifier(
        make_backbone(num_layers=1, max_sequence_length=64),
        labels=["O", "WHO", "WHAT"],
        preprocessor=preprocessor,
        **kwargs,
    )


def test_a_class_stands_at_the_first_token_of_its_word(preprocessor):
    inputs, labels, weights = preprocessor(SENTENCES, y=TAGS)
    tokenizer = preprocessor.tokenizer
    for row, (words, tags) in enumerate(zip(SENTENCES, TAGS, strict=True)):
        ids, at, counted = [tokenizer.cls_token_id], [0], [0]
        for index, (word, tag) in enumerate(zip(words, tags, strict=True)):
            own = tokenizer.tokenize(" " * (index > 0) + word).numpy().tolist()
            own = own[: 23 - len(ids)]
            ids += own
            at += [tag, *[0] * (len(own) - 1)] if own else []
            counted += [1, *[0] * (len(own) - 1)] if own else []
        ids.append(tokenizer.sep_token_id)
        length = len(ids)
        assert inputs["token_ids"][row, :length].numpy().tolist() == ids
        assert labels[row, : length - 1].numpy().tolist() == at
        assert weights[row, : length - 1].numpy().tolist() == counted
        assert not np.any(weights[row, length - 1 :])


def test_classes_below_0_do_not_count(preprocessor):
    _, labels, weights = preprocessor([["the", "captain"]], y=[[-1, 2]])
    assert labels.numpy().max() == 2
    assert weights.numpy().sum() == 1


@pytest.mark.slow
def test_it_learns_tags_of_lists_of_words(sentences, preprocessor):
    words = [sentence.rstrip(".?!").split() for sentence in sentences[:120]]
    tags = [[1 + (word == "the") for word in sentence] for sentence in words]
    task = make_task(preprocessor)
    task.compile(tf.keras.optimizers.Adam(3e-2))
    task.fit(words[:100], tags[:100], batch_size=20, epochs=6, verbose=0)
    loss, accuracy = task.evaluate(words[100:], tags[100:], verbose=0)
    assert accuracy > 0.98
    names = [[task.labels[tag] for tag in row] for row in tags[100:]]
    assert task.tag(words[100:]) == names


def test_every_word_of_a_long_sentence_is_tagged(preprocessor):
    task = make_task(preprocessor)
    randomize(task)
    words = ["the", "captain", "", "sold", "an", "unusual", "umbrella"] * 9
    (tags,) = task.tag([words])
    assert len(tags) == len(words)
    # The first row is that of the sentence's beginning.
    logits = task.predict([words], verbose=0)
    _, _, weights = preprocessor([words], y=[[1] * len(words)])
    first = logits[0].argmax(axis=-1)[weights[0].numpy() > 0]
    there = [index for index, word in enumerate(words) if word][: len(first)]
    assert [tags[index] for index in there] == [task.labels[tag] for tag in first]
    assert tags[2] == "O"


def test_every_word_needs_a_class(preprocessor):
    for words in ([["the", "captain"], ["nobody"]], [["the", "captain"]] * 2):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="a class for every word"
        ):
            preprocessor(words, y=[[1], [1]])


def test_a_text_that_is_not_in_words_is_refused(preprocessor):
    with pytest.raises(ValueError, match="must be lists of words"):
        make_task(preprocessor).tag(["the captain"])


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 2. Received: 1"):
        deberta_tf.DebertaTokenClassifier(make_backbone(num_layers=1), 1)


def test_sample_weights_are_refused(preprocessor):
    with pytest.raises(ValueError, match="sample_weight must be None"):
        preprocessor(SENTENCES, y=TAGS, sample_weight=[1.0, 1.0, 1.0])
