"""Tokenizers that run in the TensorFlow graph: SentencePiece and byte-level BPE."""

import os

import keras
import keras_hub
import tensorflow as tf

from deberta_tf import byte_pair, tokenizer_folders
from deberta_tf.base_tokenizer import SPECIAL, DebertaTokenizer
from deberta_tf.published import PUBLISHED_SIZES
from deberta_tf.sentencepiece_resource import SharedModelResource

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character.


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaSentencePieceTokenizer(
    DebertaTokenizer, keras_hub.tokenizers.SentencePieceTokenizer
):
    """SentencePiece tokenizer of DeBERTa v2, v3 and mDeBERTa.

    Gives the ids of the sentencepiece library (TF-Text runs its code). [MASK] is
    not a piece of the published models: it gets the id after the last piece.

    Args:
        proto: str path to an spm.model, or its bytes. Pieces [PAD], [CLS], [SEP] and
            [UNK] must be in it.

    Source: Kudo and Richardson 2018; SPEC 6.3.
    """

    PUBLISHED = tokenizer_folders.SENTENCE_PIECE
    FOREIGN_CLASS = "DebertaV2Tokenizer"

    def __init__(self, proto=None, **kwargs):
        for name in ("sequence_length", "add_bos", "add_eos"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} is not an option: pack_segments does that")
        # Ids, whatever the model's policy is.
        kwargs["dtype"] = "int32"
        super().__init__(proto=proto, **kwargs)

    def set_proto(self, proto):
        if isinstance(proto, str):
            with open(proto, "rb") as file:
                proto = file.read()
        super().set_proto(proto)
        if proto is None:
            self._set_tokens(None)
            return
        pieces = keras_hub.tokenizers.SentencePieceTokenizer.get_vocabulary(self)
        if self.mask_token not in pieces:
            pieces.append(self.mask_token)
        self._set_tokens(pieces)

    def _set_proto_tf(self, proto):
        super()._set_proto_tf(proto)
        self._sentence_piece._model_resource = SharedModelResource(proto)

    def load_assets(self, dir_path):
        self.set_proto(os.path.join(dir_path, self.file_assets[0]))

    def _asset_contents(self):
        self._require_vocabulary()
        return {self.file_assets[0]: self.proto}

    def _encode(self, strings):
        return self._sentence_piece.tokenize(strings)

    def _encode_with_offsets(self, strings):
        return self._sentence_piece.tokenize_with_offsets(strings)

    def _decode(self, ids):
        return self._sentence_piece.detokenize(ids)

    def _token_text(self, token):
        return token.replace(_SPACE_MARK, " ")


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaBytePairTokenizer(DebertaTokenizer):
    """GPT-2 byte-level BPE tokenizer of DeBERTa v1, in core TensorFlow ops.

    Gives the ids of the GPT-2 encoder, as they stand in the vocabulary. No prefix
    space is added; malformed UTF-8 is read as U+FFFD. One word takes a step for
    each merge rule that applies to it: a "word" of 10,000 letters is slow (about
    0.7 s where 1,000 sentences take 10 ms).

    Args:
        vocabulary: dict of token to id, or str path to a vocab.json. Gaps between the
            ids are allowed. The special tokens must be in it: add them to a vocabulary
            that has none, such as GPT-2's own.
        merges: list of "left right" rules in order, or str path to a merges.txt.
        cls_token: str, and so on: special tokens in the vocabulary; "<s>", "</s>",
            "<pad>", "<unk>" and "<mask>" in RoBERTa's.

    Source: Radford et al. 2019, section 2.2; SPEC 6.3.
    """

    PUBLISHED = tokenizer_folders.BYTE_PAIR
    FOREIGN_CLASS = "DebertaTokenizer"

    def __init__(
        self,
        vocabulary=None,
        merges=None,
        *,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        **kwargs,
    ):
        kwargs["dtype"] = "int32"
        super().__init__(**kwargs)
        self.cls_token = cls_token
        self.sep_token = sep_token
        self.pad_token = pad_token
        self.unk_token = unk_token
        self.mask_token = mask_token
        self.file_assets = list(self.PUBLISHED)
        self.set_vocabulary_and_merges(vocabulary, merges)

    def set_vocabulary_and_merges(self, vocabulary, merges):
        """Takes a vocabulary and its merge rules, as the constructor does."""
        if (vocabulary is None) != (merges is None):
            raise ValueError("vocabulary and merges must be given together")
        if vocabulary is None:
            self._encoder = None
            self._set_tokens(None)
            return
        vocabulary = byte_pair.read_vocabulary(vocabulary)
        tokens = [""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        self._set_tokens(tokens)
        self._encoder = byte_pair.BytePairEncoder(
            vocabulary, byte_pair.read_merges(merges), self.unk_token_id
        )

    def load_assets(self, dir_path):
        self.set_vocabulary_and_merges(
            *(os.path.join(dir_path, name) for name in self.file_assets)
        )

    def get_config(self):
        return {
            **super().get_config(),
            **{f"{name}_token": getattr(self, f"{name}_token") for name in SPECIAL},
        }

    def _asset_contents(self):
        self._require_vocabulary()
        return dict(zip(self.PUBLISHED, self._encoder.file_contents(), strict=True))

    def _encode(self, strings):
        return self._encoder.encode(strings)

    def _encode_with_offsets(self, strings):
        return self._encoder.encode_with_offsets(strings)

    def _read_text(self, strings):
        return byte_pair.valid_text(strings)

    def _decode(self, ids):
        return self._encoder.decode(ids)

    def _token_text(self, token):
        return byte_pair.token_bytes(token).decode("utf-8", "replace")


def load_tokenizer(path):
    """Loads the tokenizer of a folder, or that of an spm.model file.

    Args:
        path: str. What `DebertaTokenizer.from_preset` takes, or a file.

    Raises:
        ValueError: if there is no such file or folder, or no tokenizer in it.
    """
    if os.path.isdir(path) or "://" in path or path in PUBLISHED_SIZES:
        return DebertaTokenizer.from_preset(path)
    if not os.path.isfile(path):
        raise ValueError(f"tokenizer: no file or folder {path!r}")
    try:
        return DebertaSentencePieceTokenizer(path)
    except tf.errors.OpError:
        raise ValueError(f"tokenizer: {path!r} is not a SentencePiece model") from None
