"""Writes folders that Hugging Face's libraries load."""

import os
import re

import numpy as np
import safetensors.numpy

from deberta_tf import files
from deberta_tf.checkpoints import configs, names

# What a folder of ours, or of a published checkpoint, is made of.
FOLDER_FILES = re.compile(
    r"(generator_)?config\.json"
    r"|model(\.generator)?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|spm\.model|vocab\.json|merges\.txt|tokenizer_config\.json"
)


def write_folder(
    directory, arguments, tensors, entries, head, max_shard_size, tokenizer=None
):
    """Writes a folder with config, weights and tokenizer, whole or not at all.

    Args:
        directory: str. The folder; an earlier one is replaced.
        arguments: dict, all arguments of the `DebertaBackbone`.
        tensors: dict of `StoredTensor` by standard names.
        entries: dict, of the config besides those of the encoder.
        head: str, end of the name of Hugging Face's class, as "ForMaskedLM".
        max_shard_size: float, in GB.
        tokenizer: tokenizer of ours, or None.

    Raises:
        ValueError: if Hugging Face has no such model, or the folder holds what is no
            part of such a folder.
    """
    config = describe(arguments, tensors, entries, head)
    files.check_replaceable(directory, FOLDER_FILES.fullmatch)
    with files.atomic_directory(directory) as temporary:
        files.write_json(os.path.join(temporary, "config.json"), config)
        write_weights(temporary, spell(arguments, tensors, config), max_shard_size)
        if tokenizer is not None:
            tokenizer.save_published(temporary)


def describe(arguments, tensors, entries, head):
    """The config to write, see `write_folder`."""
    config = configs.foreign_config(arguments)
    stem = "Deberta" if config["model_type"] == "deberta" else "DebertaV2"
    dtypes = {tensor.dtype.name for tensor in tensors.values()}
    return {
        "architectures": [stem + head],
        **config,
        **entries,
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
    }


def spell(arguments, tensors, config):
    """The tensors under the names that the config tells Hugging Face to expect."""
    return names.spelled_tensors(
        tensors,
        arguments["num_heads"],
        first_version=config["model_type"] == "deberta",
        legacy_head=config.get("legacy", False),
    )


def write_weights(directory, tensors, max_shard_size, suffix=""):
    """Writes tensors to one safetensors file, or to shards and their index.

    No more than a shard is in memory at a time.

    Args:
        directory: str, an existing folder.
        tensors: dict of `StoredTensor`, by the names to write.
        max_shard_size: float, in GB of 10^9 bytes. A larger tensor has a shard of its
            own.
        suffix: str, after "model" in the names of the files.
    """
    shards = _split(tensors, max_shard_size * 1e9)
    if len(shards) == 1:
        _write_shard(directory, f"model{suffix}.safetensors", tensors, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model{suffix}-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory, file, tensors, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {
        "metadata": {"total_size": sum(map(_size, tensors.values()))},
        "weight_map": weight_map,
    }
    path = os.path.join(directory, f"model{suffix}.safetensors.index.json")
    files.write_json(path, index)


def _split(tensors, limit):
    shards, room = [], 0
    for name, tensor in tensors.items():
        size = _size(tensor)
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _size(tensor):
    return int(np.prod(tensor.shape)) * tensor.dtype.itemsize


def _write_shard(directory, file, tensors, names):
    values = {name: np.ascontiguousarray(tensors[name].read()) for name in names}
    # Hugging Face's loader refuses a file that does not tell its framework.
    safetensors.numpy.save_file(
        values, os.path.join(directory, file), metadata={"format": "pt"}
    )
