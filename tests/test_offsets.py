"""Characters of tokens, against Python's own strings."""

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import offsets
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import byte_pair_tokenizer

# Ligatures that NFKC takes apart, combining marks, characters of 3 and 4 bytes, spaces
# of all sorts.
TEXTS = [
    "the old  captain sold\tthe\u00a0harbour.",
    " \ufb01sh na\u00efve \u65e5\u672c the",
    "",
    "e\u0301a  the\U0001f600cat ",
    "  \u3000 ",
]


@pytest.fixture(params=["sentencepiece", "byte_pair"])
def tokenizer(request, sentencepiece_proto):
    if request.param == "sentencepiece":
        return DebertaSentencePieceTokenizer(sentencepiece_proto)
    return byte_pair_tokenizer()


def test_offsets_come_with_the_ids_of_tokenize(tokenizer):
    ids, starts, ends = tf.function(tokenizer.tokenize_with_offsets)(tf.constant(TEXTS))
    assert ids.to_list() == tokenizer.tokenize(TEXTS).to_list()
    assert ids.shape[0] == starts.shape[0] == ends.shape[0] == len(TEXTS)
    assert starts.row_lengths().numpy().tolist() == ids.row_lengths().numpy().tolist()


def test_tokens_cover_every_character_but_spaces_in_order(tokenizer):
    _, starts, ends = tokenizer.tokenize_with_offsets(TEXTS)
    for text, first, last in zip(TEXTS, starts.to_list(), ends.to_list(), strict=True):
        spans = list(zip(first, last, strict=True))
        assert spans == sorted(spans)
        covered = {i for start, end in spans for i in range(start, end)}
        assert covered == {i for i, one in enumerate(text) if not one.isspace()}


def test_a_token_has_its_own_characters(tokenizer):
    text = "na\u00efve \u65e5 the cat"
    ids, starts, ends = tokenizer.tokenize_with_offsets(text)
    found = [
        text[start:end]
        for id, start, end in zip(
            ids.numpy(), starts.numpy(), ends.numpy(), strict=True
        )
        if tokenizer.id_to_token(id).endswith("the")
    ]
    assert found == ["the"]


def test_malformed_text_is_counted_as_python_decodes_it(tokenizer):
    raw = b"a\xff\xfe the"
    _, starts, ends = tokenizer.tokenize_with_offsets(raw)
    text = raw.decode("utf-8", "replace")
    assert text[starts.numpy()[-1] : ends.numpy()[-1]] == "the"


def test_a_span_touches_the_tokens_that_share_a_character():
    starts = tf.ragged.constant([[0, 4, 4, 9], [0]], tf.int32)
    ends = tf.ragged.constant([[3, 4, 8, 12], [2]], tf.int32)
    spans = np.array([[4, 8, 2, 8, 5, 20], [0, 0, 1, 3, 2, 9]]).reshape(2, 3, 2)
    first, last = offsets.tokens_of_spans(starts, ends, spans[..., 0], spans[..., 1])
    # 4-8: the third token; 2-8: it and those before; from 5: it and the last.
    assert first.numpy().tolist() == [[2, 0, 2], [0, 0, 0]]
    # Of the second text 0-0 is empty, and nothing stands at 2-9.
    assert last.numpy().tolist() == [[3, 3, 4], [0, 1, 0]]
