"""Presets of KerasHub's own `DebertaV3Backbone`, in and out."""

import re

import keras
import keras_hub

from deberta_tf import files
from deberta_tf.checkpoints.transfer import numpy_dtype
from deberta_tf.torch_files import StoredTensor

_BLOCK = "disentangled_attention_encoder_layer_{i}/"
_ATTENTION = _BLOCK + "self_attention_layer/"
_THEIR_BLOCK = "encoder.layer.{i}."
# KerasHub's layers -> standard names without ".weight" and ".bias".
_LAYERS = {
    "embeddings_layer_norm": "embeddings.LayerNorm",
    "rel_embedding/rel_embeddings_layer_norm": "encoder.LayerNorm",
    _ATTENTION + "query": _THEIR_BLOCK + "attention.self.query_proj",
    _ATTENTION + "key": _THEIR_BLOCK + "attention.self.key_proj",
    _ATTENTION + "value": _THEIR_BLOCK + "attention.self.value_proj",
    _ATTENTION + "attention_output": _THEIR_BLOCK + "attention.output.dense",
    _BLOCK + "self_attention_layer_norm": _THEIR_BLOCK + "attention.output.LayerNorm",
    _BLOCK + "feedforward_layer_norm": _THEIR_BLOCK + "output.LayerNorm",
    _BLOCK + "feedforward_intermediate_dense": _THEIR_BLOCK + "intermediate.dense",
    _BLOCK + "feedforward_output_dense": _THEIR_BLOCK + "output.dense",
}
_TABLES = {
    "token_embedding/embeddings": "embeddings.word_embeddings.weight",
    "rel_embedding/rel_embedding": "encoder.rel_embeddings.weight",
}
_KINDS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
_SIZES = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "dropout",
    "max_sequence_length",
    "bucket_size",
)
# What every model of KerasHub's class is, in our arguments.
_FIXED = {
    "position_terms": ["c2p", "p2c"],
    "share_position_projections": True,
    "key_bias": True,
    "normalize_relative_embeddings": True,
    "absolute_position_input": False,
    "num_segments": 0,
    "convolution_kernel_size": 0,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-7,
}


def is_known(name):
    """Whether KerasHub publishes its class under that name."""
    return name in keras_hub.models.DebertaV3Backbone.presets


def is_keras_hub(config):
    """Whether the content of a `config.json` is of KerasHub's `DebertaV3Backbone`."""
    name = keras.saving.get_registered_name(keras_hub.models.DebertaV3Backbone)
    return config.get("registered_name") == name


def read_preset(preset, load_weights=True):
    """Reads one of KerasHub's presets.

    Args:
        preset: str, a folder or a handle that KerasHub knows.
        load_weights: bool. False: no tensors.

    Returns:
        (arguments, tensors): `DebertaBackbone` arguments, and a dict of
        `StoredTensor` by standard names.
    """
    model = keras_hub.models.DebertaV3Backbone.from_preset(
        preset, load_weights=load_weights
    )
    arguments = {name: getattr(model, name) for name in _SIZES}
    arguments["attention_dropout"] = model.dropout
    if not load_weights:
        return arguments, {}
    return arguments, {standard_name(w.path): _stored(w) for w in model.weights}


def write_preset(directory, arguments, tensors, tokenizer=None):
    """Writes a backbone as a preset of KerasHub's `DebertaV3Backbone`.

    Args:
        directory: str. The folder; an earlier preset is replaced.
        arguments: dict, all arguments of the `DebertaBackbone`.
        tensors: dict of `StoredTensor` by standard names.
        tokenizer: `DebertaSentencePieceTokenizer`, or None.

    Raises:
        ValueError: if KerasHub's class can't be such a model.
    """
    _check_writable(arguments)
    files.check_replaceable(directory, files.PRESET_FILES.fullmatch)
    model = keras_hub.models.DebertaV3Backbone(
        **{name: arguments[name] for name in _SIZES}
    )
    for weight in model.weights:
        value = tensors[standard_name(weight.path)].read()
        value = value.T if _is_kernel(weight.path) else value
        weight.assign(value.reshape(weight.shape))
    with files.atomic_directory(directory) as temporary:
        model.save_to_preset(temporary)
        if tokenizer is not None:
            hub_tokenizer = keras_hub.models.DebertaV3Tokenizer(tokenizer.proto)
            hub_tokenizer.save_to_preset(temporary)


def standard_name(path):
    """The standard name of a variable of KerasHub's class."""
    match = re.search(r"_layer_(\d+)/", path)
    index = match[1] if match else ""
    pattern = path.replace(match[0], "_layer_{i}/") if match else path
    if pattern in _TABLES:
        return _TABLES[pattern]
    layer, _, kind = pattern.rpartition("/")
    return f"{_LAYERS[layer]}.{_KINDS[kind]}".replace("{i}", index)


def _is_kernel(path):
    return path.endswith("/kernel")


def _stored(weight):
    if _is_kernel(weight.path):
        shape = (weight.shape.num_elements() // weight.shape[0], weight.shape[0])
    elif weight.path.endswith("/bias"):
        shape = (weight.shape.num_elements(),)
    else:
        shape = tuple(weight.shape)

    def read():
        value = weight.numpy()
        if _is_kernel(weight.path):
            return value.reshape(shape[::-1]).T
        return value.reshape(shape)

    return StoredTensor(shape, numpy_dtype(weight.dtype), read)


def _check_writable(arguments):
    needed = {
        **_FIXED,
        "attention_dropout": arguments["dropout"],
        "embedding_dim": arguments["hidden_dim"],
        "head_dim": arguments["hidden_dim"] // arguments["num_heads"],
    }
    problems = [
        f"{name}={arguments[name]!r} (must be {value!r})"
        for name, value in needed.items()
        if arguments[name] != value
    ]
    longest = arguments["max_relative_distance"]
    if longest not in (None, arguments["max_sequence_length"]):
        problems.append(f"max_relative_distance={longest}")
    if not arguments["bucket_size"]:
        problems.append("bucket_size=0")
    if problems:
        raise ValueError(
            "KerasHub's DebertaV3Backbone can't be such a model. Received: "
            + ", ".join(problems)
        )
