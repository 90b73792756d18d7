"""Writes folders that Hugging Face's libraries load."""

import dataclasses
import os
import re
import warnings

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


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of a folder, which holds a generator beside its own for v3.

    Attributes:
        arguments: dict, all arguments of the `DebertaBackbone`.
        tensors: dict of `StoredTensor` by standard names.
        entries: dict, of the config besides those of the encoder.
        foreign_class: str, how the name of Hugging Face's class ends, as "ForMaskedLM";
            None: it has no such head, and only Microsoft's layout is written.
    """

    arguments: dict
    tensors: dict
    entries: dict
    foreign_class: str | None

    @property
    def first_version(self):
        return not self.arguments["key_bias"]

    def config(self):
        """What `config.json` is to hold."""
        config = configs.foreign_config(self.arguments)
        stem = "Deberta" if self.first_version else "DebertaV2"
        dtypes = {tensor.dtype.name for tensor in self.tensors.values()}
        architecture = {}
        if self.foreign_class is not None:
            architecture = {"architectures": [stem + self.foreign_class]}
        return {
            **architecture,
            **config,
            **self.entries,
            "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
        }

    def spelled_tensors(self):
        """The tensors under the names that the config tells Hugging Face to expect."""
        return names.spelled_tensors(
            self.tensors,
            self.arguments["num_heads"],
            first_version=self.first_version,
            legacy_head=self.entries.get("legacy", False),
        )


class HuggingFaceSaving:
    """Mixin of what goes out to Hugging Face by its `foreign_models(dtype)`."""

    def save_to_huggingface(
        self, directory, dtype=None, max_shard_size=2, tokenizer=None
    ):
        """Writes a folder that Hugging Face's class of this model loads.

        Args:
            directory: str. The folder; an earlier one is replaced.
            dtype: str. Of the tensors: "float32", "float16", "bfloat16"; None: that
                of the variables.
            max_shard_size: float, in GB. What is larger goes to several files.
            tokenizer: to write beside it; None: that of the preprocessor, if any.

        Raises:
            ValueError: if Hugging Face has no such model, or the folder holds what is
                no part of such a folder: it would be lost.
        """
        preprocessor = getattr(self, "preprocessor", None)
        if tokenizer is None and preprocessor is not None:
            tokenizer = preprocessor.tokenizer
        models = self.foreign_models(dtype)
        write_folder(directory, models, max_shard_size, tokenizer)


def write_folder(directory, models, max_shard_size, tokenizer=None):
    """Writes a folder with configs, weights and tokenizer, whole or not at all.

    Args:
        directory: str. The folder; an earlier one is replaced.
        models: dict of `Model`, by "" and, for the generator of v3, "generator".
        max_shard_size: float, in GB.
        tokenizer: tokenizer of ours, or None.

    Raises:
        ValueError: if Hugging Face has no such model, or the folder holds what is no
            part of such a folder.
    """
    told = {name: model.config() for name, model in models.items()}
    if models[""].foreign_class is None:
        warnings.warn(
            "Hugging Face's library has no class with this head: it reads the encoder "
            "of the folder alone",
            stacklevel=3,
        )
    files.check_replaceable(directory, FOLDER_FILES.fullmatch)
    with files.atomic_directory(directory) as temporary:
        for name, model in models.items():
            path = os.path.join(temporary, f"{name}_config.json".lstrip("_"))
            files.write_json(path, told[name])
            suffix = name and f".{name}"
            write_weights(temporary, model.spelled_tensors(), max_shard_size, suffix)
        if tokenizer is not None:
            tokenizer.save_published(temporary)


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


def _write_shard(directory, file, tensors, shard):
    values = {name: np.ascontiguousarray(tensors[name].read()) for name in shard}
    # Hugging Face's loader refuses a file that does not tell its framework.
    safetensors.numpy.save_file(
        values, os.path.join(directory, file), metadata={"format": "pt"}
    )
