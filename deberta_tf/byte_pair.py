"""GPT-2's byte-level byte-pair encoding (BPE) in core, stateless TensorFlow ops.

No TF-Text, no hash tables: the merge rules are constants of the graph, so that an
exported model needs neither a custom-op library nor an initialiser, and serving any
number of texts leaves nothing behind. (KerasHub's BPE keeps a cache in a
MutableHashTable that grows with every new word.)
"""

import json

import numpy as np
import tensorflow as tf

from deberta_tf import files, torch_files

# Unicode White_Space; RE2's own \s knows ASCII only.
_SPACE = r"\t-\r\x{85}\p{Z}"

# RE2 has no lookahead, so GPT-2's `\s+(?!\S)` is a step of its own: of several spaces
# before a word, the last stands apart from the others.
_LAST_SPACE = rf"([{_SPACE}])([{_SPACE}][^{_SPACE}])"
_WORD = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    r"| ?\p{L}+| ?\p{N}+"
    rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+"
    rf"|[{_SPACE}]+"
)

# A byte that valid UTF-8 never holds, so no text can be mistaken for it.
_BREAK = b"\xff"

_OFFICIAL_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def byte_alphabet():
    """GPT-2's printable character for each byte.

    Returns:
        list of 256 str. Printable Latin-1 characters stand for themselves, the
        other bytes, in order, for the characters from U+0100.
    """
    alphabet, spare = [], 0x100
    for byte in range(256):
        printable = 0x21 <= byte <= 0x7E or byte >= 0xA1 and byte != 0xAD
        alphabet.append(chr(byte if printable else spare))
        spare += not printable
    return alphabet


_BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}


def token_bytes(token):
    """The bytes that a token of a vocab.json stands for.

    Returns:
        bytes; the UTF-8 of the token itself where it isn't written in the byte
        alphabet (special tokens may not be).
    """
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode("utf-8")


class BytePairEncoder:
    """GPT-2 BPE from strings to ids and back.

    A plain object that holds NumPy arrays only: it can be copied, pickled and used in
    any number of graphs.

    Args:
        vocabulary: dict of token (in GPT-2's printable byte alphabet) to id, as
            `read_vocabulary` gives it.
        merges: list of "left right" rules, the first one applied first, as
            `read_merges` gives it.
        unknown_id: int. Id of a byte that the vocabulary has no token for.

    Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016; SPEC 6.3.
    """

    def __init__(self, vocabulary, merges, unknown_id):
        self.vocabulary, self.merges = vocabulary, merges
        symbols = dict(_BYTE_OF)
        pairs, results = [], []
        for rank, merge in enumerate(merges):
            left, right = _split_merge(merge, rank)
            if left + right not in vocabulary:
                raise ValueError(
                    f"merges must make tokens of the vocabulary. Received: merge "
                    f"{rank}, {merge!r}, makes {left + right!r}, which is not in it"
                )
            for token in (left, right, left + right):
                symbols.setdefault(token, len(symbols))
            pairs.append((symbols[left], symbols[right]))
            results.append(symbols[left + right])

        self._num_symbols = len(symbols)
        self._symbol_ids = np.array(
            [vocabulary.get(token, unknown_id) for token in symbols], np.int32
        )
        # A character of the byte alphabet is a byte.
        self._symbol_lengths = np.array([len(token) for token in symbols], np.int32)
        keys = np.array([self._pair_key(*pair) for pair in pairs], np.int64)
        order = np.argsort(keys, kind="stable")
        # The entry after the last stands for "no such rule": its key is above any.
        self._no_rule = len(pairs)
        self._keys = np.append(keys[order], np.iinfo(np.int64).max)
        self._ranks = np.append(order, self._no_rule).astype(np.int32)
        self._results = np.array([*results, 0], np.int32)

    def _pair_key(self, left, right):
        return left * self._num_symbols + right

    def encode(self, strings):
        """Strings to ids.

        Args:
            strings: string tensor (B,), UTF-8. A malformed byte sequence is read
                as U+FFFD.

        Returns:
            int32 RaggedTensor (B, None) of ids.
        """
        symbols = self._symbols(strings)
        return symbols.with_values(tf.gather(self._symbol_ids, symbols.values))

    def encode_with_offsets(self, strings):
        """Strings to ids, and the bytes that each of them stands for.

        Args:
            strings: as `encode` takes them.

        Returns:
            (ids, starts, ends), int32 RaggedTensors (B, None). Bytes of the text in
            which U+FFFD stands for what is malformed; `ends` excluded.
        """
        symbols = self._symbols(strings)
        lengths = symbols.with_values(tf.gather(self._symbol_lengths, symbols.values))
        ends = tf.cumsum(lengths.values)
        before = tf.cumsum(tf.reduce_sum(lengths, axis=1), exclusive=True)
        ends -= tf.gather(before, lengths.value_rowids())
        return (
            symbols.with_values(tf.gather(self._symbol_ids, symbols.values)),
            lengths.with_values(ends - lengths.values),
            lengths.with_values(ends),
        )

    def _symbols(self, strings):
        words = split_words(strings)
        # Words repeat: each different one is merged once.
        unique_words, word_index = tf.unique(words.values)
        pieces = tf.gather(self._merge(unique_words), word_index)
        return words.with_values(pieces).merge_dims(1, 2)

    def decode(self, ids):
        """Ids to strings, the bytes of the tokens joined.

        Args:
            ids: int32 RaggedTensor (B, None).

        Returns:
            string tensor (B,).
        """
        size = max(self.vocabulary.values()) + 1
        table = np.full([size], b"", object)
        for token, index in self.vocabulary.items():
            table[index] = token_bytes(token)
        pieces = tf.gather(tf.constant(table, tf.string), ids.values)
        return tf.strings.reduce_join(ids.with_values(pieces), axis=-1)

    def file_contents(self):
        """The bytes of vocab.json and of merges.txt, the same for the same ids."""
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        merges = "\n".join(["#version: 0.2", *self.merges, ""])
        return f"{vocabulary}\n".encode(), merges.encode()

    def _merge(self, words):
        """Applies the merge rules: strings (W,) -> symbols, RaggedTensor (W, None)."""
        num_words = tf.size(words)
        text = tf.strings.reduce_join(words)
        symbols = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)
        # Not tf.repeat: its memory is the number of words times the longest of them.
        ends = tf.cumsum(tf.strings.length(words))
        word_of = tf.searchsorted(ends, tf.range(tf.size(symbols)), side="right")

        symbols, _ = tf.while_loop(
            lambda symbols, active: tf.size(active) > 0,
            lambda symbols, active: self._merge_step(
                symbols, active, word_of, num_words
            ),
            (symbols, tf.range(tf.size(symbols))),
            shape_invariants=(tf.TensorShape([None]), tf.TensorShape([None])),
        )
        kept = tf.where(symbols >= 0)[:, 0]
        return tf.RaggedTensor.from_value_rowids(
            tf.gather(symbols, kept),
            tf.cast(tf.gather(word_of, kept), tf.int64),
            nrows=tf.cast(num_words, tf.int64),
            validate=False,
        )

    def _merge_step(self, symbols, active, word_of, num_words):
        """Merges, in each word, all occurrences of its pair of lowest rank.

        Args:
            symbols: int32 (N,). The symbols of all words; -1 where one was merged
                into the symbol before it.
            active: int32 (A,). Ascending positions, in `symbols`, of the living
                symbols of unfinished words.
            word_of: int32 (N,). The word of each symbol.
            num_words: int32 scalar.

        Returns:
            `symbols` and `active` after the step.
        """
        current, words = tf.gather(symbols, active), tf.gather(word_of, active)
        ranks = self._pair_ranks(current, words)
        best = tf.gather(tf.math.unsorted_segment_min(ranks, words, num_words), words)
        unfinished = best < self._no_rule

        merged = _every_other_of_a_run((ranks == best) & unfinished)
        absorbed = tf.concat([tf.zeros([1], tf.bool), merged[:-1]], axis=0)
        current = tf.where(merged, tf.gather(self._results, ranks), current)
        current = tf.where(absorbed, -1, current)
        symbols = tf.tensor_scatter_nd_update(symbols, active[:, tf.newaxis], current)
        return symbols, tf.boolean_mask(active, unfinished & ~absorbed)

    def _pair_ranks(self, symbols, words):
        """Rank of the pair that begins at each symbol, `_no_rule` where none does."""
        wide = tf.cast(symbols, tf.int64)
        keys = self._pair_key(wide[:-1], wide[1:])
        index = tf.searchsorted(self._keys, keys)
        is_rule = (tf.gather(self._keys, index) == keys) & (words[:-1] == words[1:])
        ranks = tf.where(is_rule, tf.gather(self._ranks, index), self._no_rule)
        return tf.concat([ranks, [self._no_rule]], axis=0)


def split_words(strings):
    """Cuts texts into words as GPT-2 does; merges never cross a word's border.

    Args:
        strings: string tensor (B,).

    Returns:
        string RaggedTensor (B, None). Some words are empty: they yield no token.
    """
    valid = valid_text(strings)
    marked = tf.strings.regex_replace(valid, _LAST_SPACE, rb"\1" + _BREAK + rb"\2")
    marked = tf.strings.regex_replace(marked, _WORD, rb"\0" + _BREAK)
    return tf.strings.split(marked, sep=_BREAK)


def valid_text(strings):
    """Strings with U+FFFD for what is no UTF-8."""
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")


def _every_other_of_a_run(marks):
    """Keeps the 1st, 3rd, ... of consecutive marks: "aaaa" is "aa" "aa", not "a" "aa".

    Args:
        marks: bool (N,).

    Returns:
        bool (N,).
    """
    begins = marks & ~tf.concat([tf.zeros([1], tf.bool), marks[:-1]], axis=0)
    run = tf.cumsum(tf.cast(begins, tf.int32))
    # Run 0 is what comes before the first mark.
    run_begin = tf.concat([[0], tf.cast(tf.where(begins)[:, 0], tf.int32)], axis=0)
    offset = tf.range(tf.size(marks)) - tf.gather(run_begin, run)
    return marks & (offset % 2 == 0)


def read_vocabulary(vocabulary, name="vocabulary"):
    """Checks a token-to-id dict, or reads it from a JSON file (vocab.json).

    Args:
        vocabulary: dict, or str path.
        name: str. What errors call a dict.

    Returns:
        dict of str to int, in the order of the ids.

    Raises:
        ValueError: if it isn't a dict of distinct, non-negative int ids.
    """
    if isinstance(vocabulary, str):
        name = vocabulary
        vocabulary = files.read_json(vocabulary)
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ValueError(
            f"{name} must map tokens to ids. Received: {type(vocabulary).__name__}"
        )
    owners = {}
    for token, token_id in vocabulary.items():
        if not isinstance(token, str):
            raise ValueError(f"{name}: the token of id {token_id!r} is no str")
        if type(token_id) is not int or token_id < 0:
            raise ValueError(f"{name}: id of {token!r} is {token_id!r}; need int >= 0")
        if token_id in owners:
            raise ValueError(
                f"{name}: {owners[token_id]!r} and {token!r} share id {token_id}"
            )
        owners[token_id] = token
    return {owners[token_id]: token_id for token_id in sorted(owners)}


def read_merges(merges):
    """Checks a list of merge rules, or reads it from a file (merges.txt).

    Args:
        merges: list of "left right" str, or str path to a file of one rule a line;
            a first line that begins with "#version" is skipped.

    Returns:
        list of str.
    """
    if isinstance(merges, str):
        with open(merges, encoding="utf-8", newline="\n") as file:
            merges = [line.rstrip("\r\n") for line in file]
    merges = list(merges)
    if merges and merges[0].startswith("#version"):
        merges = merges[1:]
    return [merge for merge in merges if merge]


def _split_merge(merge, rank):
    parts = merge.split(" ")
    if len(parts) != 2 or not all(parts):
        raise ValueError(
            f"merges must hold two tokens each, as in 'Ġ t'. Received: {merge!r} "
            f"as merge {rank}"
        )
    return parts


def read_bpe_encoder(path):
    """Reads the official vocabulary of v1, `bpe_encoder.bin`.

    Its `dict_map` lists GPT-2's ids as text, in the order of the model's own ids,
    which begin after those of [PAD], [CLS], [SEP] and [UNK]; [MASK] comes last.

    Args:
        path: str. A file of `torch.save`; nothing of it is executed.

    Returns:
        (vocabulary, merges), as `BytePairEncoder` takes them.

    Raises:
        ValueError: if an item is missing, or the ids fit no token.

    Source: the official `gpt2_tokenizer.py`; SPEC 6.3.
    """
    content = torch_files.read_torch_file(path)
    for item, kind in (("encoder", dict), ("vocab", list), ("dict_map", list)):
        held = content.get(item) if isinstance(content, dict) else None
        if not isinstance(held, kind):
            raise ValueError(f"{path} must hold a {kind.__name__} as {item!r}")
    encoder = read_vocabulary(content["encoder"], f"{path}: encoder")
    token_of = {str(index): token for token, index in encoder.items()}
    words = [_official_word(path, entry, token_of) for entry in content["dict_map"]]
    tokens = dict.fromkeys([*_OFFICIAL_SPECIAL, *words, "[MASK]"])
    merges = [_official_merge(path, entry) for entry in content["vocab"]]
    return {token: index for index, token in enumerate(tokens)}, read_merges(merges)


def _official_word(path, entry, token_of):
    match entry:
        # Words that are no ids of GPT-2 only fill up RoBERTa's dictionary.
        case (str(word), _) if word in token_of or not word.isdecimal():
            return token_of.get(word, word)
        case (str(word), _):
            raise ValueError(
                f"{path}: dict_map names id {word}, which encoder does not have"
            )
    raise ValueError(
        f"{path}: dict_map must hold pairs of a word and its count. Received: "
        f"{type(entry).__name__}"
    )


def _official_merge(path, entry):
    match entry:
        case (str(left), str(right)):
            return f"{left} {right}"
        case str() if entry.count(" ") == 1:
            return entry
    raise ValueError(
        f"{path}: vocab must hold pairs of tokens, the merges. Received: "
        f"{type(entry).__name__}"
    )
