"""Pretraining data on disk: fixed-length rows of token ids in shards, a manifest."""

import contextlib
import hashlib
import io
import itertools
import os
import uuid

import numpy as np
import tensorflow as tf

from deberta_tf import files

MANIFEST = "manifest.json"
FORMAT = "deberta_tf.rows"
FORMAT_VERSION = 1
SHORTEST_ROW = 8
_DTYPE = np.dtype("<u4")


def pack_rows(documents, tokenizer, sequence_length):
    """Packs documents into rows: [CLS], tokens, [SEP].

    The documents, one [SEP] between them, make one stream; each row takes the next
    `sequence_length - 2` tokens of it, wherever documents end. [PAD] fills the last.

    Args:
        documents: iterable of int arrays `(k,)`, ids without special tokens. Empty
            ones are left out.
        tokenizer: gives `cls_token_id`, `sep_token_id`, `pad_token_id`.
        sequence_length: int. Tokens in a row, [CLS] and [SEP] counted in.

    Returns:
        generator of uint32 arrays `(num_rows, sequence_length)`.

    Raises:
        ValueError: if `sequence_length` is below 8.

    Source: SPEC 6.1; the official stream has no [SEP] between documents.
    """
    if sequence_length < SHORTEST_ROW:
        raise ValueError(
            f"sequence_length must be at least {SHORTEST_ROW}. "
            f"Received: sequence_length={sequence_length}"
        )
    return _pack_rows(documents, tokenizer, sequence_length)


def _pack_rows(documents, tokenizer, sequence_length):
    width = sequence_length - 2
    separator = np.array([tokenizer.sep_token_id], _DTYPE)
    rest = None
    for ids in documents:
        if len(ids) == 0:
            continue
        parts = [ids] if rest is None else [rest, separator, ids]
        stream = np.concatenate(parts, dtype=_DTYPE, casting="unsafe")
        num_rows = len(stream) // width
        if num_rows:
            full = stream[: num_rows * width].reshape(num_rows, width)
            yield _frame(full, tokenizer, sequence_length)
        rest = stream[num_rows * width :]
    if rest is not None and len(rest):
        yield _frame(rest[np.newaxis], tokenizer, sequence_length)


def _frame(tokens, tokenizer, sequence_length):
    num_rows, num_tokens = tokens.shape
    rows = np.full((num_rows, sequence_length), tokenizer.pad_token_id, _DTYPE)
    rows[:, 0] = tokenizer.cls_token_id
    rows[:, 1 : num_tokens + 1] = tokens
    rows[:, num_tokens + 1] = tokenizer.sep_token_id
    return rows


def write_rows(directory, rows, tokenizer, rows_per_shard=65536, parameters=None):
    """Writes rows as shards with a manifest; the folder appears whole or not at all.

    Shards are `rows-00000-of-00007.npy` and so on: little-endian uint32 arrays
    `(num_rows, sequence_length)`. `manifest.json` holds the format and its version,
    `sequence_length`, the numbers of `rows`, `tokens` (without [CLS], [SEP], [PAD])
    and `documents`, `shards` with the file, rows and SHA-256 of each, `tokenizer`
    (`fingerprint`, `vocabulary_size`, `special_token_ids`) and `parameters`.

    Args:
        directory: str. The folder to make; one that exists is replaced.
        rows: iterable of int arrays `(num_rows, sequence_length)`, laid out as by
            `pack_rows`. One shard of them is held in memory.
        tokenizer: the tokenizer that made the ids.
        rows_per_shard: int.
        parameters: dict for the manifest: what the rows were made with.

    Returns:
        dict. The manifest.

    Raises:
        ValueError: if there are no rows, they differ in length, or an id is not in
            the tokenizer's vocabulary.
    """
    if rows_per_shard < 1:
        raise ValueError(
            "rows_per_shard must be at least 1. "
            f"Received: rows_per_shard={rows_per_shard}"
        )
    with files.atomic_directory(directory) as folder:
        tokens = separators = 0
        shards = []
        for shard in _shards(rows, rows_per_shard):
            tokens += count_tokens(shard, tokenizer)
            separators += int(np.sum(shard == tokenizer.sep_token_id)) - len(shard)
            path = os.path.join(folder, f"rows-{len(shards):05d}.npy")
            shards.append(write_shard(path, shard, tokenizer))
        if not shards:
            raise ValueError("rows must hold one row at least. Received: none")
        _number_shards(folder, shards)
        counts = {"tokens": tokens, "documents": separators + 1}
        manifest = make_manifest(
            shard.shape[1], counts, shards, tokenizer, parameters or {}
        )
        files.write_json(os.path.join(folder, MANIFEST), manifest)
    return manifest


def make_manifest(sequence_length, counts, shards, tokenizer, parameters):
    """What `manifest.json` holds, see `write_rows`.

    Args:
        sequence_length: int.
        counts: {"tokens": int, "documents": int}.
        shards: list of what `write_shard` returned, in order.
        tokenizer: the tokenizer that made the ids.
        parameters: dict.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sequence_length": sequence_length,
        "rows": sum(shard["rows"] for shard in shards),
        **counts,
        "shards": shards,
        "tokenizer": _describe(tokenizer),
        "parameters": parameters,
    }


def write_shard(path, shard, tokenizer):
    """Writes one shard, under a temporary name first; also where `open` can't reach.

    Args:
        path: str.
        shard: int array (num_rows, sequence_length).
        tokenizer: the tokenizer that made the ids.

    Returns:
        {"file", "rows", "sha256"}.

    Raises:
        ValueError: if an id is not in the tokenizer's vocabulary.
    """
    _check_ids(shard, tokenizer)
    buffer = io.BytesIO()
    np.save(buffer, shard.astype(_DTYPE, copy=False))
    data = buffer.getvalue()
    # Its own in each process: a runner may have two write the same.
    temporary = f"{path}.{uuid.uuid4().hex}.new"
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise
    digest = hashlib.sha256(data).hexdigest()
    return {"file": os.path.basename(path), "rows": len(shard), "sha256": digest}


def count_tokens(rows, tokenizer):
    """Tokens of rows, int, without [CLS], [SEP] and [PAD]."""
    special = (tokenizer.sep_token_id, tokenizer.pad_token_id)
    return int(rows.size - len(rows) - np.sum(np.isin(rows, special)))


def _shards(rows, rows_per_shard):
    """Regroups blocks of rows into blocks of `rows_per_shard`; the last is shorter."""
    blocks, held, length = [], 0, None
    for block in rows:
        block = np.atleast_2d(block)
        length = length or block.shape[1]
        if block.shape[1] != length:
            raise ValueError(
                "rows must have one length. "
                f"Received lengths: {length} and {block.shape[1]}"
            )
        while held + len(block) >= rows_per_shard:
            taken = rows_per_shard - held
            yield np.concatenate([*blocks, block[:taken]])
            blocks, held, block = [], 0, block[taken:]
        if len(block):
            blocks.append(block)
            held += len(block)
    if blocks:
        yield np.concatenate(blocks)


def _check_ids(shard, tokenizer):
    lowest, highest = shard.min(), shard.max()
    if lowest < 0 or highest >= tokenizer.vocabulary_size():
        raise ValueError(
            f"rows must hold ids in [0, {tokenizer.vocabulary_size()}), the "
            f"tokenizer's vocabulary. Received ids from {lowest} to {highest}"
        )


def _number_shards(folder, shards):
    """Puts the number of shards, known only now, into their names."""
    for number, shard in enumerate(shards):
        name = f"rows-{number:05d}-of-{len(shards):05d}.npy"
        os.rename(os.path.join(folder, shard["file"]), os.path.join(folder, name))
        shard["file"] = name


def _describe(tokenizer):
    names = ("cls", "sep", "pad", "unk", "mask")
    return {
        "fingerprint": tokenizer.fingerprint(),
        "vocabulary_size": int(tokenizer.vocabulary_size()),
        "special_token_ids": {
            name: int(getattr(tokenizer, f"{name}_token_id")) for name in names
        },
    }


class PretrainingRows:
    """Rows written by `write_rows`, read by their numbers.

    Shards on this machine are memory-mapped; of those elsewhere ("gs://…") each row is
    read when it is asked for.

    Args:
        directory: str. The folder with `manifest.json` and the shards.

    Attributes:
        manifest: dict, see `write_rows`.
        sequence_length: int. Tokens in a row.

    Raises:
        FileNotFoundError: if the manifest or a shard is missing.
        ValueError: if the manifest is of another format or version, or a shard is
            not the array it tells of.
    """

    def __init__(self, directory):
        self.directory = directory
        self.manifest = _read_manifest(directory)
        self.sequence_length = self.manifest["sequence_length"]
        self._shards = [
            _open_shard(
                os.path.join(directory, shard["file"]),
                (shard["rows"], self.sequence_length),
            )
            for shard in self.manifest["shards"]
        ]
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self):
        return self._ends[-1]

    def take(self, indices):
        """Reads rows by their numbers, in the order given.

        Args:
            indices: int array `(n,)`, each in `[0, len(self))`.

        Returns:
            uint32 array `(n, sequence_length)`.

        Raises:
            ValueError: if an index is out of range.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise ValueError(
                f"indices must be in [0, {len(self)}), the rows of {self.directory}. "
                f"Received: {outside[0]}"
            )
        rows = np.empty((len(indices), self.sequence_length), np.uint32)
        shard_of = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(shard_of):
            wanted = shard_of == number
            start = self._ends[number] - len(self._shards[number])
            rows[wanted] = self._shards[number][indices[wanted] - start]
        return rows

    def check_tokenizer(self, fingerprint):
        """Raises ValueError unless the rows were made with that tokenizer."""
        made_with = self.manifest["tokenizer"]["fingerprint"]
        if fingerprint != made_with:
            raise ValueError(
                f"{self.directory} was made with the tokenizer {made_with}; this one "
                f"is {fingerprint}. Take the same vocabulary files, or build the rows "
                "again with tools/build_pretraining_data.py"
            )

    def verify(self):
        """Raises ValueError unless every shard has the SHA-256 of the manifest."""
        for shard in self.manifest["shards"]:
            path = os.path.join(self.directory, shard["file"])
            summary = hashlib.sha256()
            with tf.io.gfile.GFile(path, "rb") as file:
                while data := file.read(2**20):
                    summary.update(data)
            found = summary.hexdigest()
            if found != shard["sha256"]:
                raise ValueError(
                    f"{path} has SHA-256 {found}; {MANIFEST} tells of "
                    f"{shard['sha256']}. Build the rows again"
                )


class RemoteArray:
    """An .npy file that tf.io.gfile reads, row by row.

    Args:
        path: str.

    Attributes:
        shape: tuple of two ints.
        dtype: NumPy dtype.

    Raises:
        ValueError: if the file is not a whole .npy file of rows.
    """

    def __init__(self, path):
        self._path = path
        with tf.io.gfile.GFile(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            self.shape, by_columns, self.dtype = header(file)
            self._start = file.tell()
            found = file.size() - self._start
        self._row_size = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        if by_columns or found != self._row_size * len(self):
            raise ValueError(f"{found} bytes of data, for shape {self.shape}")

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, indices):
        with tf.io.gfile.GFile(self._path, "rb") as file:
            rows = [self._row(file, int(index)) for index in indices]
        return np.stack(rows)

    def _row(self, file, index):
        file.seek(self._start + index * self._row_size)
        row = np.frombuffer(file.read(self._row_size), self.dtype)
        return row.reshape(self.shape[1:])


def _read_manifest(directory):
    path = os.path.join(directory, MANIFEST)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{directory} has no {MANIFEST}. Rows are made by "
            "tools/build_pretraining_data.py"
        )
    manifest = files.read_json(path, tf.io.gfile.GFile)
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} must be of format {FORMAT!r}, version {FORMAT_VERSION}. "
            f"Found: format {found[0]!r}, version {found[1]!r}. Build the rows again"
        )
    return manifest


def _open_shard(path, shape):
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"{path}, a shard that {MANIFEST} names, is missing")
    try:
        remote = "://" in path
        shard = RemoteArray(path) if remote else np.lib.format.open_memmap(path, "r")
    except ValueError as error:
        raise ValueError(f"{path} is not a whole .npy file: {error}") from None
    if (shard.shape, shard.dtype) != (shape, _DTYPE):
        raise ValueError(
            f"{path} must hold {_DTYPE.str} of shape {shape}, as {MANIFEST} tells. "
            f"Found: {shard.dtype.str} of shape {shard.shape}"
        )
    return shard
