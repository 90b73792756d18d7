"""What the tokenizers of all DeBERTa versions have in common."""

import hashlib
import os
import string
import unicodedata

import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf import files, offsets, tokenizer_folders
from deberta_tf.published import PUBLISHED_SIZES, published_handle

SPECIAL = ("cls", "sep", "pad", "unk", "mask")


class DebertaTokenizer(keras_hub.tokenizers.Tokenizer):
    """What the tokenizers of all DeBERTa versions have in common.

    Always TensorFlow tensors, inside and outside a graph. The strings of special
    tokens in a text are plain text: "[SEP]" there is never the separator.

    Call arguments:
        inputs: strings (b,), or one string; UTF-8.

    Returns:
        int32 ids without special tokens: RaggedTensor (b, None), or a tensor (None,)
        for one string.

    Attributes: `cls_token`, `sep_token`, `pad_token`, `unk_token`, `mask_token` and
    their ids, `cls_token_id` and so on. KerasHub's `start_token_id` and `end_token_id`
    are those of `cls_token` and `sep_token`.
    """

    cls_token = "[CLS]"
    sep_token = "[SEP]"
    pad_token = "[PAD]"
    unk_token = "[UNK]"
    mask_token = "[MASK]"

    @property
    def has_vocabulary(self):
        """False between building from a configuration and loading the assets."""
        return self._tokens is not None

    @property
    def special_tokens(self):
        return [getattr(self, f"{name}_token") for name in SPECIAL]

    @property
    def special_token_ids(self):
        """Ascending list of the five ids."""
        return sorted(self.token_to_id(token) for token in self.special_tokens)

    def call(self, inputs, training=None):
        return self.tokenize(inputs)

    def tokenize(self, inputs):
        """Strings to ids, see the class."""
        strings = self._checked_strings(inputs)
        with tf.device("cpu"):
            ids = self._encode(tf.reshape(strings, [-1]))
        (ids,) = _in_shape(strings, ids)
        return ids

    def tokenize_with_offsets(self, inputs):
        """Strings to ids, and where they stand in their text.

        Args:
            inputs: strings (b,), or one string; UTF-8.

        Returns:
            (ids, starts, ends), int32, each as `tokenize` gives ids. `starts` and
            `ends` (excluded) count characters, Unicode code points; the spaces that
            a token begins with are not its own.
        """
        strings = self._checked_strings(inputs)
        with tf.device("cpu"):
            texts = tf.reshape(strings, [-1])
            ids, starts, ends = self._encode_with_offsets(texts)
            starts, ends = offsets.to_characters(self._read_text(texts), starts, ends)
        return _in_shape(strings, ids, starts, ends)

    def _checked_strings(self, inputs):
        self._require_vocabulary()
        strings = tf.convert_to_tensor(inputs, tf.string)
        if strings.shape.rank not in (0, 1):
            raise ValueError(
                "inputs must be one string or a batch of them, of rank 0 or 1. "
                f"Received: shape={strings.shape}"
            )
        return strings

    def _read_text(self, strings):
        """The text whose bytes `_encode_with_offsets` counts."""
        return strings

    def detokenize(self, inputs):
        """Ids to strings; special tokens but the unknown one leave no text.

        Args:
            inputs: int ids (b, l), ragged or dense, or (l,).

        Returns:
            string tensor (b,), or a scalar. Bytes as they are: UTF-8 where ids were
            not cut within a character.
        """
        self._require_vocabulary()
        ids = tf.ragged.constant(inputs) if isinstance(inputs, list) else inputs
        one = len(ids.shape) == 1
        ids = tf.cast(ids[tf.newaxis] if one else ids, tf.int32)
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        silent = sorted({*self.special_token_ids} - {self.unk_token_id})
        is_text = tf.reduce_all(ids.values[:, tf.newaxis] != silent, axis=1)
        with tf.device("cpu"):
            texts = self._decode(tf.ragged.boolean_mask(ids, ids.with_values(is_text)))
        return texts[0] if one else texts

    def vocabulary_size(self):
        """Number of ids, special ones included."""
        self._require_vocabulary()
        return len(self._tokens)

    def get_vocabulary(self):
        """Tokens in the order of their ids; "" for an id that has none."""
        self._require_vocabulary()
        return list(self._tokens)

    def id_to_token(self, id):
        self._require_vocabulary()
        size = len(self._tokens)
        if not 0 <= id < size:
            raise ValueError(f"id must be in [0, {size}). Received: id={id}")
        return self._tokens[id]

    def token_to_id(self, token):
        """The id of a token, that of the unknown token for any other string."""
        self._require_vocabulary()
        return self._id_of.get(token, self._id_of[self.unk_token])

    def continues_word(self):
        """Which tokens continue the word of the token before them (SPEC 6.2, step 2).

        All but: those that begin with a space, single punctuation, space or control
        characters, and special tokens.

        Returns:
            bool array (vocabulary_size,).
        """
        texts = [self._token_text(token) for token in self.get_vocabulary()]
        continues = np.array([text and not _begins_word(text) for text in texts], bool)
        continues[self.special_token_ids] = False
        return continues

    def fingerprint(self):
        """SHA-256, in hexadecimal, of the vocabulary as `save_assets` writes it."""
        digest = hashlib.sha256()
        for content in self._asset_contents().values():
            digest.update(content)
        return digest.hexdigest()

    def save_assets(self, dir_path):
        for name, content in self._asset_contents().items():
            with open(os.path.join(dir_path, name), "wb") as file:
                file.write(content)

    def save_published(self, dir_path):
        """Writes the files of a published model, which Hugging Face's class loads."""
        for name, content in zip(
            self.PUBLISHED, self._asset_contents().values(), strict=True
        ):
            files.atomic_write(os.path.join(dir_path, name), content)
        settings = {
            "tokenizer_class": self.FOREIGN_CLASS,
            "do_lower_case": False,
            **{f"{name}_token": getattr(self, f"{name}_token") for name in SPECIAL},
        }
        files.write_json(os.path.join(dir_path, "tokenizer_config.json"), settings)

    @classmethod
    def from_config(cls, config):
        # Vocabularies are assets: a path that a configuration names is not opened.
        assets = ("proto", "vocabulary", "merges")
        return cls(**{key: x for key, x in config.items() if key not in assets})

    @classmethod
    def from_preset(cls, preset, config_file="tokenizer.json", **kwargs):
        """Loads the tokenizer of a folder.

        Args:
            preset: str. A folder written by `save_to_preset`, or one with the files
                of a published model or of `tools/train_tokenizer.py`: spm.model, or
                vocab.json and merges.txt, or v1's bpe_encoder.bin. A handle that
                KerasHub knows, such as "hf://owner/name". A published size.
            config_file: str. File of `save_to_preset`, inside `preset`.
            kwargs: constructor arguments, e.g. `cls_token="<s>"`.

        Returns:
            a `DebertaSentencePieceTokenizer` or a `DebertaBytePairTokenizer`: what
            the folder holds. Asked of one of these classes, the other is an error.

        Raises:
            ValueError: if the folder has no tokenizer, or that of another class.
        """
        if preset in PUBLISHED_SIZES:
            preset = published_handle(preset)
        kind, config = tokenizer_folders.find_tokenizer(preset, config_file)
        holds = next(
            each for each in DebertaTokenizer.__subclasses__() if each.PUBLISHED == kind
        )
        if not issubclass(holds, cls):
            raise ValueError(
                f"{preset} holds a {holds.__name__}, not a {cls.__name__}. Load it "
                f"with {holds.__name__}.from_preset or {DebertaTokenizer.__name__}"
                ".from_preset"
            )
        if config is None:
            return holds(
                *tokenizer_folders.published_vocabulary(preset, kind), **kwargs
            )
        tokenizer = holds.from_config({**config, **kwargs})
        tokenizer.load_preset_assets(preset)
        return tokenizer

    def _set_tokens(self, tokens):
        """Takes the list of tokens by id, or None: no vocabulary yet."""
        self._tokens = tokens
        if tokens is None:
            return
        self._id_of = {token: index for index, token in enumerate(tokens) if token}
        for name in SPECIAL:
            token = getattr(self, f"{name}_token")
            if token not in self._id_of:
                raise ValueError(
                    f"The vocabulary must have the special token {token!r}. Train it "
                    "with tools/train_tokenizer.py, or name the byte-pair token that "
                    f"stands for it, as in {name}_token='<s>'"
                )
            setattr(self, f"{name}_token_id", self._id_of[token])
        self.start_token_id, self.end_token_id = self.cls_token_id, self.sep_token_id

    def _require_vocabulary(self):
        if not self.has_vocabulary:
            raise ValueError(f"{type(self).__name__} has no vocabulary yet")


def _in_shape(strings, *rows):
    """RaggedTensors (b, None) of strings (b,); of one string, their only rows."""
    batch = strings.shape.num_elements()
    for ragged in rows if batch is not None else ():
        # TPUs need it, and the string ops lose it.
        ragged.row_splits.set_shape([batch + 1])
    return rows if strings.shape.rank == 1 else tuple(one.values for one in rows)


def _begins_word(text):
    if text.startswith(" "):
        return True
    is_mark = text in string.punctuation or unicodedata.category(text[0])[0] in "PZC"
    return len(text) == 1 and is_mark
