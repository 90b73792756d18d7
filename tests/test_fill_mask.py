import keras
import numpy as np
import pytest

from deberta_tf.fill_mask import masked_ids
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tokenizers import (
    DebertaBytePairTokenizer,
    DebertaSentencePieceTokenizer,
)
from tests.small_models import make_backbone, randomize


@pytest.fixture
def tokenizer(sentencepiece_proto):
    return DebertaSentencePieceTokenizer(sentencepiece_proto)


@pytest.fixture
def masked_lm(tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, sequence_length=48)
    backbone = make_backbone(max_sequence_length=48)
    return DebertaMaskedLM(backbone, preprocessor)


@pytest.mark.parametrize(
    "text",
    [
        "the old captain [MASK] the harbour.",
        "[MASK] sold it.",
        "nobody [MASK]!",
        "[MASK], they say, [MASK].",
    ],
)
def test_the_tokens_around_a_mask_are_those_of_the_whole_text(tokenizer, text):
    # With a word that is one token in the place of the mask.
    word = "harbour"
    whole = tokenizer(text.replace("[MASK]", word)).numpy().tolist()
    (known,) = tokenizer(word).numpy().tolist()
    expected = [tokenizer.mask_token_id if i == known else i for i in whole]
    if "the harbour." in text:
        expected[-2] = known
    assert masked_ids(tokenizer, text)[1:-1] == expected


def test_a_byte_pair_mask_takes_the_space_before_it():
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "Ġ", ".", "Ġb", "[MASK]"]
    tokenizer = DebertaBytePairTokenizer({t: i for i, t in enumerate(tokens)}, ["Ġ b"])
    assert masked_ids(tokenizer, "a [MASK] b.") == [1, 4, 9, 8, 7, 2]


def test_candidates_are_those_of_the_logits(masked_lm, tokenizer):
    randomize(masked_lm)
    texts = ["the jury [MASK] the [MASK].", "[MASK] sold it."]
    filled = masked_lm.fill_mask(texts, top_k=4)
    assert [len(masks) for masks in filled] == [2, 1]
    row = np.array([masked_ids(tokenizer, texts[0])], "int32")
    logits = masked_lm({"token_ids": row, "padding_mask": np.ones_like(row)})[0]
    places = np.nonzero(row[0] == tokenizer.mask_token_id)[0]
    for place, candidates in zip(places, filled[0], strict=True):
        probabilities = keras.ops.softmax(logits[place]).numpy()
        best = np.argsort(-probabilities[: tokenizer.vocabulary_size()])[:4]
        scores = [score for _, score in candidates]
        np.testing.assert_allclose(scores, probabilities[best], rtol=1e-4)
        words = [tokenizer.detokenize([int(i)]).numpy().decode() for i in best]
        assert [word for word, _ in candidates] == words


def test_one_text_gives_the_list_of_its_masks(masked_lm):
    text = "nobody [MASK] that song."
    assert masked_lm.fill_mask(text) == masked_lm.fill_mask([text])[0]
    assert len(masked_lm.fill_mask(text)[0]) == 5


@pytest.mark.slow
def test_it_fills_what_it_was_trained_to_fill(masked_lm, sentences):
    masked_lm.compile(keras.optimizers.Adam(1e-2), global_clipnorm=1.0)
    only = [s for s in sentences if "the harbour" in s] * 4
    masked_lm.fit(only, batch_size=32, epochs=25, verbose=0)
    ((best, probability), *_) = masked_lm.fill_mask("nobody sold the [MASK].")[0]
    assert (best, probability > 0.5) == ("harbour", True)


def test_a_text_without_a_mask_is_refused(masked_lm):
    with pytest.raises(ValueError, match=r"hold a \[MASK\]. Received: 'no mask'"):
        masked_lm.fill_mask(["[MASK]", "no mask"])


def test_ids_alone_can_not_be_filled():
    with pytest.raises(ValueError, match="without a preprocessor"):
        DebertaMaskedLM(make_backbone()).fill_mask("[MASK]")


def test_no_texts_give_no_answers(masked_lm):
    assert masked_lm.fill_mask([]) == []
