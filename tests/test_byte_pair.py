"""GPT-2's BPE, step by step, against the plain algorithm of its paper."""

import random

import pytest
import regex
import tensorflow as tf

from deberta_tf import byte_pair

GPT2_WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def merged(word, merges):
    """The pieces of one word, by the merge rules one at a time."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    pieces = [byte_pair.byte_alphabet()[byte] for byte in word.encode()]
    while True:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        known = [pair for pair in pairs if pair in ranks]
        if not known:
            return pieces
        best, joined = min(known, key=ranks.get), []
        while pieces:
            size = 2 if tuple(pieces[:2]) == best else 1
            joined.append("".join(pieces[:size]))
            pieces = pieces[size:]
        pieces = joined


def encoder_of(merges, extra=()):
    alphabet = byte_pair.byte_alphabet()
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), *extra]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return byte_pair.BytePairEncoder(vocabulary, merges, unknown_id=0)


def encode(encoder, texts):
    return encoder.encode(tf.constant(texts)).to_list()


def test_words_are_those_of_the_pattern_with_lookahead():
    generator = random.Random(3)
    pieces = [*"ab'1 \n\t\r!", "'s", "'ll", "  ", "\u00a0", "\u3000", "\x85", "\v"]
    pieces += [
        *"éßΩ中½\u0301\u200b\u2028",
        "👩‍👩‍👧",
        "\x00",
        "\x1c",
        "\ufeff",
        "\ufffd",
    ]
    texts = [
        "".join(generator.choices(pieces, k=n)) for n in range(12) for _ in "." * 99
    ]
    words = byte_pair.split_words(tf.constant(texts)).to_list()
    for text, found in zip(texts, words, strict=True):
        found = [word.decode() for word in found if word]
        assert found == GPT2_WORDS.findall(text), repr(text)


def test_of_several_spaces_before_a_word_the_last_stays_with_it():
    (words,) = byte_pair.split_words(tf.constant(["a   b"])).to_list()
    assert [word for word in words if word] == [b"a", b"  ", b" b"]


def test_merges_follow_the_plain_algorithm():
    generator = random.Random(5)
    pieces, merges = list("abcd"), []
    for _ in range(60):
        pair = generator.choices(pieces, k=2)
        if len("".join(pair)) < 8 and " ".join(pair) not in merges:
            merges.append(" ".join(pair))
            pieces.append("".join(pair))
    generator.shuffle(merges)  # Also rules that come before what they stand on.
    encoder = encoder_of(merges)
    words = ["".join(generator.choices("abcd", k=n)) for n in range(1, 60)]
    expected = [
        [encoder.vocabulary[piece] for piece in merged(word, merges)] for word in words
    ]
    assert encode(encoder, words) == expected


def test_equal_neighbours_merge_from_the_left():
    encoder = encoder_of(["a a"])
    assert encode(encoder, ["aaaaa"]) == [[256, 256, ord("a")]]


def test_merges_do_not_cross_words_or_texts():
    encoder = encoder_of(["a 1"])
    assert encode(encoder, ["a", "1", "a1"]) == [[97], [49], [97, 49]]


def test_without_merges_every_byte_is_a_token():
    encoder = encoder_of([])
    assert [len(ids) for ids in encode(encoder, ["", "a", "é中"])] == [0, 1, 5]


def test_a_byte_outside_the_vocabulary_is_unknown():
    encoder = byte_pair.BytePairEncoder({"[UNK]": 0, "a": 1}, [], unknown_id=0)
    assert encode(encoder, ["aba"]) == [[1, 0, 1]]


def test_decoding_gives_the_bytes_back():
    encoder = encoder_of(["a b"], extra=["[CLS]"])
    ids = tf.ragged.constant([[256, 33], [], [257]])
    assert encoder.decode(ids).numpy().tolist() == [b"ab!", b"", b"[CLS]"]


def test_the_alphabet_is_256_printable_characters():
    alphabet = byte_pair.byte_alphabet()
    assert len(set(alphabet)) == 256
    assert all(character.isprintable() and character != " " for character in alphabet)
    assert [alphabet[byte] for byte in b" \na~"] == ["Ġ", "Ċ", "a", "~"]


def test_a_token_outside_the_alphabet_stands_for_itself():
    assert byte_pair.token_bytes("Ġé") == b" \xe9"
    assert byte_pair.token_bytes("日") == "日".encode()


def test_files_and_lists_are_read_alike(tmp_path):
    (tmp_path / "vocab.json").write_text('{"b": 1, "a": 0, "ab": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n# #\n\n")
    assert list(byte_pair.read_vocabulary(str(tmp_path / "vocab.json"))) == [
        "a",
        "b",
        "ab",
    ]
    assert byte_pair.read_merges(str(tmp_path / "merges.txt")) == ["a b", "# #"]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"a": 0, "b": 0}, "'a' and 'b' share id 0"),
        ({"a": -1}, "id of 'a' is -1"),
        ({"a": "0"}, "id of 'a' is '0'"),
        (["a"], "must map tokens to ids. Received: list"),
        ({}, "must map tokens to ids"),
    ],
)
def test_a_wrong_vocabulary_is_refused(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        byte_pair.read_vocabulary(vocabulary)


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text("a b c")
    with pytest.raises(ValueError, match="vocab.json is not JSON"):
        byte_pair.read_vocabulary(str(path))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("ab", "two tokens each, as in 'Ġ t'. Received: 'ab' as merge 0"),
        ("a b c", "two tokens each"),
        ("x y", "makes 'xy', which is not in it"),
    ],
)
def test_a_wrong_merge_is_refused(merge, message):
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    with pytest.raises(ValueError, match=message):
        byte_pair.BytePairEncoder(vocabulary, [merge], unknown_id=0)
