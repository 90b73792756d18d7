"""Turns text files into rows of token ids to pretrain on, in shards with a manifest.

Writes OUTPUT/train and, where documents are held out, OUTPUT/held_out. Text is read as
a stream; the same input and options give the same files.
"""

import glob
import hashlib
import itertools
import os
import sys
import time

import tensorflow as tf

from deberta_tf import files, rows, tokenizers

# Text tokenized at once: enough to keep every core busy, little to hold.
_BATCH_CHARACTERS = 2**18
# A file without blank lines must not be one document, held in memory as a whole.
_LONGEST_DOCUMENT = 2**20
_PROGRESS_SECONDS = 15


def main(argv=None):
    options = _parse(argv)
    _check(options)
    paths = input_files(options.input)
    tokenizer = tokenizers.load_tokenizer(options.tokenizer)
    with files.atomic_directory(options.output) as folder:
        for split in ("train", "held_out") if options.held_out_fraction else ("train",):
            start = time.monotonic()
            directory = os.path.join(folder, split)
            manifest = _write_split(split, directory, paths, tokenizer, options)
            _report(split, manifest, time.monotonic() - start)


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="UTF-8 text files, or patterns such as 'text/**/*.txt'",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="spm.model, or a folder with it, with vocab.json and merges.txt, or "
        "written by save_to_preset",
    )
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument(
        "--sequence_length",
        type=int,
        default=128,
        help="tokens in a row, [CLS] and [SEP] counted in (%(default)s)",
    )
    parser.add_argument(
        "--document",
        choices=("block", "line"),
        default="block",
        help="a document is a block of lines between blank ones, or each line "
        "(%(default)s)",
    )
    parser.add_argument(
        "--held_out_fraction",
        type=float,
        default=0.0,
        help="share of documents, chosen by a hash of their text, that goes to "
        "held_out (%(default)s)",
    )
    parser.add_argument(
        "--rows_per_shard",
        type=int,
        default=65536,
        help="rows in a file; one shard is held in memory (%(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what OUTPUT holds"
    )
    return parser.parse_args(argv)


def _check(options):
    for name, least in (("sequence_length", rows.SHORTEST_ROW), ("rows_per_shard", 1)):
        value = getattr(options, name)
        if value < least:
            raise files.UsageError(f"--{name} must be at least {least}; got {value}")
    if not 0 <= options.held_out_fraction < 1:
        raise files.UsageError(
            "--held_out_fraction must be at least 0 and below 1; got "
            f"{options.held_out_fraction}"
        )
    if not os.path.exists(options.tokenizer):
        raise files.UsageError(f"--tokenizer: no file or folder {options.tokenizer!r}")
    _check_output(options.output, options.overwrite)


def _check_output(output, overwrite):
    if os.path.lexists(output) and not overwrite:
        raise files.UsageError(f"{output} exists; --overwrite replaces it")
    files.check_replaceable(
        output, lambda name: os.path.isfile(os.path.join(output, name, rows.MANIFEST))
    )


def input_files(patterns):
    """The files that paths and patterns name, each once, empty ones left out.

    Order: that of `patterns`, the matches of each sorted.

    Raises:
        UsageError: if a pattern gives no file with something in it.
    """
    paths = {}
    for pattern in patterns:
        found = [pattern] if os.path.lexists(pattern) else None
        found = found or sorted(glob.glob(pattern, recursive=True))
        whole = [path for path in found if os.path.isfile(path)]
        filled = [path for path in whole if os.path.getsize(path)]
        if not filled:
            if whole:
                raise files.UsageError(f"--input: {pattern!r} is empty")
            if os.path.isdir(pattern):
                advice = os.path.join(pattern, "**", "*.txt")
                raise files.UsageError(
                    f"--input: {pattern!r} is a folder; name its files: {advice!r}"
                )
            raise files.UsageError(f"--input: no file {pattern!r}")
        paths.update(dict.fromkeys(filled))
    return list(paths)


def read_documents(path, document):
    """The documents of a text file, one string each, without outer line breaks.

    Args:
        path: str. A UTF-8 file.
        document: "line": every line that is not blank; or "block": lines up to a
            blank one. A block goes on as a new document after 2**20 characters.

    Raises:
        UsageError: if the file is not UTF-8, with the offset of the first bad byte.
    """
    lines = _read_lines(path)
    if document == "line":
        yield from (line for line in lines if line.strip())
        return
    block, num_characters = [], 0
    for line in itertools.chain(lines, [""]):
        is_blank = not line.strip()
        if not is_blank:
            block.append(line)
            num_characters += len(line)
        if block and (is_blank or num_characters >= _LONGEST_DOCUMENT):
            yield "\n".join(block)
            block, num_characters = [], 0


def _read_lines(path):
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise files.UsageError(
                    f"{path} is not UTF-8 at byte {offset + error.start}: "
                    f"{error.reason}. Convert the file, or leave it out"
                ) from None
            # Some editors mark UTF-8 with a byte order mark; it is not text.
            text = text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)
            yield text.rstrip("\r\n")


def is_held_out(document, held_out_fraction):
    """Whether a document is held out: by its text, so that copies go one way."""
    digest = hashlib.sha256(document.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < held_out_fraction * 2**64


def _write_split(split, directory, paths, tokenizer, options):
    fraction = options.held_out_fraction
    documents = (
        document
        for path in paths
        for document in read_documents(path, options.document)
        if is_held_out(document, fraction) == (split == "held_out")
    )
    token_ids = _with_progress(split, _tokenize(documents, tokenizer))
    packed = rows.pack_rows(token_ids, tokenizer, options.sequence_length)
    first = next(packed, None)
    if first is None:
        raise files.UsageError(
            f"no text for {split}, with --held_out_fraction {fraction}, in "
            f"{len(paths)} file(s), the first of them {paths[0]!r}"
        )
    parameters = {
        "split": split,
        "held_out_fraction": fraction,
        "document": options.document,
        "input": [
            {"file": os.path.basename(path), "bytes": os.path.getsize(path)}
            for path in paths
        ],
    }
    return rows.write_rows(
        directory,
        itertools.chain([first], packed),
        tokenizer,
        rows_per_shard=options.rows_per_shard,
        parameters=parameters,
    )


def _tokenize(documents, tokenizer):
    """Yields the ids of each document."""
    signature = [tf.TensorSpec([None], tf.string)]
    tokenize = tf.function(tokenizer.tokenize, input_signature=signature)
    for batch in _batches(documents):
        ragged = tokenize(tf.constant(batch))
        ids, splits = ragged.values.numpy(), ragged.row_splits.numpy()
        for start, end in itertools.pairwise(splits):
            yield ids[start:end]


def _batches(documents):
    batch, num_characters = [], 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _with_progress(split, documents):
    start = told = time.monotonic()
    num_tokens = 0
    for number, ids in enumerate(documents, 1):
        yield ids
        num_tokens += len(ids)
        now = time.monotonic()
        if now - told >= _PROGRESS_SECONDS:
            told = now
            rate = num_tokens / (now - start)
            line = f"{split}: {number:,} documents, {num_tokens:,} tokens"
            print(f"{line}, {rate:,.0f} tokens/s", file=sys.stderr, flush=True)


def _report(split, manifest, seconds):
    print(
        f"{split}: {manifest['rows']:,} rows of {manifest['sequence_length']} in "
        f"{len(manifest['shards'])} shard(s), {manifest['documents']:,} documents, "
        f"{manifest['tokens']:,} tokens, {manifest['tokens'] / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    files.run_command(main)
