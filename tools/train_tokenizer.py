"""Trains a vocabulary for one's own language or domain from text files.

    python -m tools.train_tokenizer --kind sentencepiece --input "texts/*.txt" \
        --vocabulary_size 8000 --output build/tokenizer

The same lines, options and library versions give the same files, on any number of
cores. `DebertaTokenizer.from_preset(output)` loads the result.
"""

import glob
import io
import json
import os
import random
import re
import time

import sentencepiece
import tokenizers

from deberta_tf import files

_OUTPUTS = {
    "sentencepiece": ("spm.model",),
    "bpe": ("vocab.json", "merges.txt"),
}

# SentencePiece sums its counts by thread, so its pieces would follow their number.
_SENTENCEPIECE_THREADS = 16

# The longest line that SentencePiece would still read: by default it drops, silently,
# lines of over 4192 bytes.
_ANY_LENGTH = 2**30

# A pair seen once says nothing about the language.
_MIN_PAIR_COUNT = 2


def main(argv=None):
    """Reads the flags, trains, writes the folder and prints one line."""
    options = _read_flags(argv)
    if options.max_sentences < 0:
        raise files.UsageError(
            f"max_sentences must be 0 or more. Received: {options.max_sentences}"
        )
    names = {name for names in _OUTPUTS.values() for name in names}
    files.check_replaceable(options.output, names.__contains__)
    start_s = time.monotonic()
    lines = _read_lines(_input_paths(options.input))
    if options.max_sentences:
        lines = _sample(lines, options.max_sentences, random.Random(options.seed))
    lines = list(lines)
    train = train_sentencepiece if options.kind == "sentencepiece" else train_bpe
    contents = train(lines, options.vocabulary_size)
    with files.atomic_directory(options.output) as folder:
        for name, content in contents.items():
            files.atomic_write(os.path.join(folder, name), content)
    print(
        f"{options.kind}: {options.vocabulary_size:,} tokens from {len(lines):,} lines "
        f"in {time.monotonic() - start_s:.1f} s -> {options.output}"
    )


def train_sentencepiece(lines, vocabulary_size):
    """Trains a unigram model with the settings of DeBERTa v3's.

    nmt_nfkc normalisation, byte fallback, [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3. [MASK]
    is not a piece: the tokenizer gives it the id after the last.

    Args:
        lines: list of str.
        vocabulary_size: int. Pieces in the file, special ones included.

    Returns:
        dict of file name to bytes.

    Raises:
        UsageError: if the text supports fewer pieces, or needs more.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # A line with a tab, its own separator, would be dropped.
            sentence_iterator=(line.replace("\t", " ") for line in lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=True,
            max_sentence_length=_ANY_LENGTH,
            num_threads=_SENTENCEPIECE_THREADS,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
            minloglevel=2,
        )
    except RuntimeError as error:
        raise files.UsageError(_size_message(str(error), vocabulary_size)) from error
    return {"spm.model": model.getvalue()}


def train_bpe(lines, vocabulary_size):
    """Trains a byte-level BPE with the ids of DeBERTa v1's special tokens.

    [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, [MASK] the last. Every byte is a token, so no
    text has unknown tokens.

    Args:
        lines: list of str.
        vocabulary_size: int. Tokens in the file, special ones included.

    Returns:
        dict of file name to bytes.

    Raises:
        UsageError: if the text supports fewer tokens, or needs more.
    """
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    first = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    smallest = len(first) + len(alphabet) + 1
    if vocabulary_size < smallest:
        raise files.UsageError(_too_small(vocabulary_size, smallest))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=first,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    size = tokenizer.get_vocab_size() + 1
    if size < vocabulary_size:
        raise files.UsageError(_too_large(vocabulary_size, size))
    return _bpe_files(tokenizer)


def _bpe_files(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], "[MASK]": len(model["vocab"])}
    merges = [" ".join(pair) for pair in model["merges"]]
    text = json.dumps(vocabulary, ensure_ascii=False)
    return {
        "vocab.json": f"{text}\n".encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def _size_message(message, vocabulary_size):
    """SentencePiece's complaint about the size, with the number that would do."""
    largest = re.search(r"too high .*<= (\d+)", message)
    if largest:
        return _too_large(vocabulary_size, int(largest[1]))
    smallest = re.search(r"smaller than required_chars. \d+ vs (\d+)", message)
    if smallest:
        return _too_small(vocabulary_size, int(smallest[1]))
    return f"SentencePiece could not train: {message}"


def _too_large(vocabulary_size, largest):
    return (
        f"vocabulary_size {vocabulary_size} is more than this text supports: at most "
        f"{largest}; give more text or a smaller number"
    )


def _too_small(vocabulary_size, smallest):
    return (
        f"vocabulary_size {vocabulary_size} has no room for the special tokens, the "
        f"bytes and the characters of this text: at least {smallest}"
    )


def _input_paths(patterns):
    paths = []
    for pattern in patterns:
        if not glob.has_magic(pattern):
            paths.append(pattern)
            continue
        matches = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not matches:
            raise files.UsageError(f"no file matches {pattern!r}")
        paths += matches
    return paths


def _read_lines(paths):
    """Yields the lines of all files that are not blank."""
    for path in paths:
        is_empty = True
        try:
            with open(path, encoding="utf-8") as file:
                for line in filter(str.strip, file):
                    is_empty = False
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise files.UsageError(f"{path} is not UTF-8 text: {error}") from None
        if is_empty:
            raise files.UsageError(f"{path} holds no text")


def _sample(lines, count, generator):
    """`count` lines, each equally likely, without holding the others in memory."""
    kept = []
    for index, line in enumerate(lines):
        place = index if index < count else generator.randrange(index + 1)
        if place < count:
            kept[place : place + 1] = [line]
    return kept


def _read_flags(argv):
    parser = files.ArgumentParser(
        prog="python -m tools.train_tokenizer",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--kind",
        choices=list(_OUTPUTS),
        required=True,
        help="sentencepiece writes spm.model (v2, v3); bpe vocab.json, merges.txt (v1)",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="UTF-8 text files or patterns, one sentence or paragraph a line",
    )
    parser.add_argument(
        "--vocabulary_size",
        type=int,
        required=True,
        metavar="N",
        help="tokens in the file, special ones included (sentencepiece: without "
        "[MASK], which the tokenizer adds)",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write"
    )
    parser.add_argument(
        "--max_sentences",
        type=int,
        default=0,
        metavar="N",
        help="train on this many lines, drawn at random; 0: on all (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    files.run_command(main)
