"""The documents of text files, JSONL files and TFDS splits, read in parts."""

import dataclasses
import glob
import io
import json
import math
import os
import re

import tensorflow as tf

from deberta_tf.files import UsageError

# What one worker reads at a time, and how much of it makes a shard.
PART_BYTES = 2**22
PART_EXAMPLES = 4096
PARTS_PER_SHARD = 8
# A file without line ends or blank lines must not be held in memory as a whole.
LONGEST_TEXT = 2**20
LONGEST_JSON = 2**26
# "tfds:imdb_reviews:train", as the trainers take it.
_TFDS = re.compile(r"tfds:(?P<builder>[^:]+):(?P<split>.+)")


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read at a time: bytes [start, end) of a file, or a share of a split.

    Attributes:
        source: str. A path, or "tfds:BUILDER:SPLIT".
        start, end: ints. Bytes; of a split, the number of the share and how many.
    """

    source: str
    start: int
    end: int


def parts_of(inputs, data_dir=None):
    """All parts of the inputs, each source once.

    Args:
        inputs: list of str. Paths or patterns of text files (of JSON lines where the
            name ends in .jsonl), "gs://" and the like among them; "tfds:…".
        data_dir: str. Where TFDS keeps its data; None: its default.

    Returns:
        (parts, facts): list of `Part`, and a list of {"file", "bytes"} or {"file",
        "examples"} of each source. Files without a byte have no part.

    Raises:
        UsageError: if an input gives nothing to read.
    """
    sources = {}
    for one in inputs:
        found = [one] if _TFDS.fullmatch(one) else _files(one)
        sources.update(dict.fromkeys(found))
    parts, facts = [], []
    for source in sources:
        if _TFDS.fullmatch(source):
            count = _num_examples(source, data_dir)
            shares = math.ceil(count / PART_EXAMPLES)
            parts += [Part(source, number, shares) for number in range(shares)]
            facts.append({"file": source, "examples": count})
            continue
        size = tf.io.gfile.stat(source).length
        starts = range(0, size, PART_BYTES)
        parts += [Part(source, start, start + PART_BYTES) for start in starts]
        facts.append({"file": os.path.basename(source), "bytes": size})
    return parts, facts


def _files(pattern):
    """The files that a path or pattern names, sorted."""
    if "://" in pattern:
        found = sorted(tf.io.gfile.glob(pattern))
    elif os.path.lexists(pattern):
        found = [pattern]
    else:
        found = sorted(glob.glob(pattern, recursive=True))
    whole = [path for path in found if not tf.io.gfile.isdir(path)]
    if any(tf.io.gfile.stat(path).length for path in whole):
        return whole
    if whole:
        raise UsageError(f"--input: {pattern!r} is empty")
    if tf.io.gfile.isdir(pattern):
        advice = os.path.join(pattern, "**", "*.txt")
        raise UsageError(
            f"--input: {pattern!r} is a folder; name its files: {advice!r}"
        )
    raise UsageError(f"--input: no file {pattern!r}")


def read_part(part, document, text_column, counts, data_dir=None):
    """The documents that begin in a part.

    Args:
        part: `Part`.
        document: "line": every line that is not blank; or "block": lines up to a blank
            one. Of JSON lines and TFDS each record is a document.
        text_column: str. The field or feature that holds the text.
        counts: dict to count in: `bytes` of the documents; `cut`, pieces of texts that
            were longer than 2**20 characters; `not_utf8` and `no_text`, documents that
            are left out; `first_left_out`, where.
        data_dir: as `parts_of` takes it.

    Yields:
        str, without outer line breaks.
    """
    if _TFDS.fullmatch(part.source):
        texts = _read_examples(part, text_column, data_dir)
    elif part.source.endswith(".jsonl"):
        texts = _read_records(part, text_column, counts)
    elif document == "line":
        texts = _read_lines(part, counts)
    else:
        texts = _read_blocks(part, counts)
    for place, text in texts:
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            leave_out(counts, "not_utf8", part.source, place + error.start)
            continue
        # Some editors mark UTF-8 with a byte order mark; it is not text.
        text = text.removeprefix("\ufeff") if place == 0 else text
        if text.strip():
            counts["bytes"] = counts.get("bytes", 0) + len(text.encode("utf-8"))
            yield from _pieces(text, counts)


def leave_out(counts, reason, source, place):
    """Counts a document that is left out, and notes the first of them."""
    counts[reason] = counts.get(reason, 0) + 1
    where = [os.path.basename(source), place, reason]
    counts["first_left_out"] = min(where, counts.get("first_left_out", where))


def _pieces(text, counts):
    if len(text) <= LONGEST_TEXT:
        yield text
        return
    for start in range(0, len(text), LONGEST_TEXT):
        _count_cut(counts, True)
        yield text[start : start + LONGEST_TEXT]


def _count_cut(counts, is_piece):
    if is_piece:
        counts["cut"] = counts.get("cut", 0) + 1


def _read_lines(part, counts):
    for offset, line, is_piece in _lines(part, LONGEST_TEXT):
        if offset >= part.end:
            return
        _count_cut(counts, is_piece)
        yield offset, line


def _read_blocks(part, counts):
    """Blocks whose blank line before them is in the part, or that open the file."""
    is_ours = part.start == 0
    block, begin, size = [], 0, 0
    for offset, line, is_piece in _lines(part, LONGEST_TEXT):
        is_blank = not line.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        if block and (is_blank or size >= LONGEST_TEXT):
            yield begin, b"\n".join(block)
            block, size = [], 0
        if offset >= part.end and (is_blank or not is_ours):
            return
        if is_blank:
            is_ours = True
        elif is_ours:
            _count_cut(counts, is_piece)
            begin = begin if block else offset
            block.append(line)
            size += len(line)
    if block:
        yield begin, b"\n".join(block)


def _read_records(part, text_column, counts):
    for offset, line, _ in _lines(part, LONGEST_JSON):
        if offset >= part.end:
            return
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_column]
            text = text.encode("utf-8")
        except UnicodeError:
            leave_out(counts, "not_utf8", part.source, offset)
        except (ValueError, TypeError, KeyError, AttributeError):
            leave_out(counts, "no_text", part.source, offset)
        else:
            # A mark of byte order is one of the file, not of the text.
            yield max(offset, 1), text


def _lines(part, longest):
    """(offset, line without its end, is_piece) of lines, from a part's first on.

    A line longer than `longest` bytes comes in pieces, each with the offset of the
    line; none of them cuts a character.
    """
    with _open(part.source) as file:
        offset = part.start
        if offset:
            # The line that is under way belongs to the part before.
            file.seek(offset - 1)
            offset += _skip_line(file) - 1
        length = 0
        while line := file.readline(longest):
            ends = len(line) < longest or line.endswith(b"\n")
            line += b"" if ends else _rest_of_character(file)
            yield offset, line.rstrip(b"\r\n"), length > 0 or not ends
            length += len(line)
            if ends:
                offset, length = offset + length, 0


class _RemoteFile(io.RawIOBase):
    """A file that `open` does not reach, for a buffered reader."""

    def __init__(self, path):
        self._file = tf.io.gfile.GFile(path, "rb")

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self._file.seek(offset, whence)
        return self._file.tell()

    def readinto(self, buffer):
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _open(path):
    if "://" in path:
        return io.BufferedReader(_RemoteFile(path), buffer_size=2**20)
    return open(path, "rb")


def _skip_line(file):
    skipped = 0
    while line := file.readline(LONGEST_TEXT):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _rest_of_character(file):
    rest = b""
    for _ in range(3):
        byte = file.read(1)
        if not byte or byte[0] & 0xC0 != 0x80:
            file.seek(-len(byte), os.SEEK_CUR)
            break
        rest += byte
    return rest


def _builder(source, data_dir):
    # Slow to import, and read only where it is used.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        made = tfds.builder(_TFDS.fullmatch(source)["builder"], data_dir=data_dir)
        made.download_and_prepare()
    except (ValueError, OSError, tfds.core.DatasetNotFoundError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--input: {source}: {reason}") from None
    return made


def _num_examples(source, data_dir):
    split = _TFDS.fullmatch(source)["split"]
    try:
        return _builder(source, data_dir).info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--input: {source}: no split {split!r}: {reason}") from None


def _read_examples(part, text_column, data_dir):
    import tensorflow_datasets as tfds

    split = _TFDS.fullmatch(part.source)["split"]
    share = tfds.even_splits(split, part.end)[part.start]
    dataset = _builder(part.source, data_dir).as_dataset(split=share)
    if text_column not in dataset.element_spec:
        raise UsageError(
            f"{part.source} has the features {sorted(dataset.element_spec)}, "
            f"not {text_column!r}: --text_column"
        )
    for number, example in enumerate(tfds.as_numpy(dataset), start=1):
        yield number, example[text_column]
