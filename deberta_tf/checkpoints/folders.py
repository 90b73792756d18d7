"""Folders and handles of Hugging Face and Microsoft, opened to be read."""

import dataclasses
import os

import ml_dtypes
import numpy as np
import safetensors
from keras_hub.src.utils import preset_utils

from deberta_tf import files
from deberta_tf.checkpoints import configs, keras_hub_presets, names
from deberta_tf.published import PUBLISHED_SIZES, published_handle
from deberta_tf.torch_files import StoredTensor, read_torch_file

CONFIG_FILE = "config.json"
GENERATOR = "generator"
# Where the weights may be, in the order of preference; {} is "" or ".generator".
_WEIGHTS = (
    "model{}.safetensors",
    "model{}.safetensors.index.json",
    "pytorch_model{}.bin",
    "pytorch_model{}.bin.index.json",
)
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A foreign folder: its config, and its tensors under standard names.

    Attributes:
        preset: str, the folder or handle that it was read from; None: a geometry.
        config: dict, the content of its `config.json`.
        arguments: dict, of `DebertaBackbone`.
        tensors: dict of `StoredTensor` by standard names.
    """

    preset: str | None
    config: dict
    arguments: dict
    tensors: dict

    def holds(self, part):
        """Whether a tensor's standard name begins so."""
        return any(name.startswith(part) for name in self.tensors)

    def rows(self, name):
        """Length of a tensor's first axis; None where there is no such tensor."""
        tensor = self.tensors.get(name)
        return tensor and tensor.shape[0]

    def without(self, part):
        """The same but for the tensors whose standard names begin so."""
        kept = {k: v for k, v in self.tensors.items() if not k.startswith(part)}
        return dataclasses.replace(self, tensors=kept)


def open_checkpoint(preset, load_weights=True, generator=False):
    """Opens a Hugging Face / Microsoft folder; reads names and shapes only.

    Args:
        preset: str, as `DebertaBackbone.from_preset` takes it.
        load_weights: bool. False: no weights are looked for, and a published size
            is a geometry that needs no folder.
        generator: bool. Of a checkpoint of replaced-token detection, whether to open
            its generator; else its discriminator is opened.

    Returns:
        `Checkpoint`, or None where the preset is one of ours.

    Raises:
        ValueError: if nothing of that name is known, or files are missing or broken.
    """
    if preset in PUBLISHED_SIZES:
        if not load_weights:
            return _geometry(preset, generator)
        preset = published_handle(preset)
    config = read_config(preset)
    if keras_hub_presets.is_keras_hub(config):
        if generator:
            raise ValueError(f"{preset!r} is KerasHub's: it holds no generator")
        hub = keras_hub_presets.read_preset(preset, load_weights)
        return Checkpoint(preset, {}, *hub)
    if "registered_name" in config:
        return None
    role = GENERATOR if generator else "discriminator"
    nested = role in config
    tensors = {}
    if load_weights:
        tensors = _open_weights(preset, _suffix(generator and not nested))
    if nested:
        config, tensors = _take_role(config, tensors, role)
    elif generator:
        config = _generator_config(preset, config, tensors)
    first_version = configs.is_first_version(config, tensors)
    arguments = configs.backbone_arguments(config, first_version)
    tensors = names.standard_tensors(tensors, arguments["num_heads"])
    return Checkpoint(preset, config, arguments, tensors)


def _suffix(generator):
    return f".{GENERATOR}" if generator else ""


def _geometry(name, generator):
    arguments = PUBLISHED_SIZES[name]
    if generator:
        arguments = {
            **arguments,
            "num_layers": generator_depth(arguments["num_layers"]),
        }
    return Checkpoint(None, {}, arguments, {})


def generator_depth(num_layers):
    """Blocks of the generator of a discriminator: half of them (SPEC 4.1)."""
    return max(1, num_layers // 2)


def is_ours(preset):
    """Whether a folder or handle holds a preset that `save_to_preset` wrote."""
    if preset in PUBLISHED_SIZES:
        return False
    config = read_config(preset)
    is_hub = keras_hub_presets.is_keras_hub(config)
    return "registered_name" in config and not is_hub


def has_generator(preset):
    """Whether a foreign folder holds a generator beside its discriminator."""
    if GENERATOR in read_config(preset):
        return True
    return _first_file(preset, _weight_files(_suffix(True))) is not None


def read_config(preset):
    """The content of the `config.json` of a folder or handle.

    Raises:
        ValueError: if there is no such folder or file, or it is broken.
    """
    if not (
        "://" in preset or os.path.isdir(preset) or keras_hub_presets.is_known(preset)
    ):
        raise ValueError(
            f"No preset {preset!r}: neither a folder nor a published size "
            f"({', '.join(PUBLISHED_SIZES)})"
        )
    try:
        path = preset_utils.get_file(preset, CONFIG_FILE)
    except FileNotFoundError as error:
        # Of a handle the cause tells an absent file from an absent network.
        reason = f": {error.__cause__}" if error.__cause__ else ""
        raise ValueError(f"{preset!r} has no {CONFIG_FILE}{reason}") from None
    return files.read_json(path)


def find_file(preset, name):
    """Local path of a file of a folder or handle; None where there is none."""
    try:
        return preset_utils.get_file(preset, name)
    except FileNotFoundError:
        return None


def _weight_files(suffix):
    return [name.format(suffix) for name in _WEIGHTS]


def _first_file(preset, candidates):
    for name in candidates:
        path = find_file(preset, name)
        if path is not None:
            return path
    return None


def _open_weights(preset, suffix):
    candidates = _weight_files(suffix)
    path = _first_file(preset, candidates)
    if path is None:
        raise ValueError(f"{preset!r} has no weights: none of {', '.join(candidates)}")
    if path.endswith(".index.json"):
        return _open_shards(preset, path)
    return _open_file(path)


def _open_shards(preset, index_path):
    index = files.read_json(index_path).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{index_path} has no weight_map")
    tensors = {}
    for name in sorted(set(index.values())):
        path = os.path.basename(name) == name and find_file(preset, name)
        if not path:
            raise ValueError(f"{preset!r} has no {name!r}, which its index names")
        tensors.update(_open_file(path))
    missing = sorted(index.keys() - tensors.keys())
    if missing:
        raise ValueError(
            f"{preset!r}: shards lack tensors of the index: {', '.join(missing[:8])}"
        )
    return tensors


def _open_file(path):
    if not path.endswith(".bin"):
        return _open_safetensors(path)
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict of tensors, not {type(content)}")
    return {k: v for k, v in content.items() if isinstance(v, StoredTensor)}


def _open_safetensors(path):
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: _describe(path, file, name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def _describe(path, file, name):
    view = file.get_slice(name)
    dtype = view.get_dtype()
    if dtype not in _DTYPES:
        raise ValueError(f"{path}: {name} has the unknown dtype {dtype}")

    def read():
        # Opened anew each time: an open file would keep what was read in memory.
        with safetensors.safe_open(path, framework="np") as again:
            return again.get_tensor(name)

    return StoredTensor(tuple(view.get_shape()), np.dtype(_DTYPES[dtype]), read)


def _take_role(config, tensors, role):
    prefix = f"{role}."
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if tensors and not own:
        raise ValueError(f"The checkpoint has no tensors of its {role}")
    sharing = {k: v for k, v in config.items() if k == "embedding_sharing"}
    return {**sharing, **config[role]}, own


def _generator_config(preset, config, tensors):
    """Of a published folder: its own file, or the config with the blocks counted."""
    path = find_file(preset, f"{GENERATOR}_config.json")
    if path is not None:
        return files.read_json(path)
    blocks = {name.partition("encoder.layer.")[2].partition(".")[0] for name in tensors}
    depth = len(blocks - {""}) or generator_depth(config["num_hidden_layers"])
    return {**config, "num_hidden_layers": depth}
