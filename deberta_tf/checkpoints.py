"""Hugging Face / Microsoft folders: their configs, tensor names, and layouts.

The one table of names. Works on strings and arrays and imports no model.
"""

import inspect
import json
import os
import re

import safetensors
import safetensors.numpy

from deberta_tf.published import PUBLISHED_SIZES

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Ours -> theirs, without the prefix "deberta."; {i} is the number of a block.
_TABLES = {
    "embeddings/token_embedding/embeddings": "embeddings.word_embeddings.weight",
    "embeddings/segment_embedding/embeddings": (
        "embeddings.token_type_embeddings.weight"
    ),
    "embeddings/position_embedding/embeddings": (
        "embeddings.position_embeddings.weight"
    ),
    "encoder/relative_embeddings": "encoder.rel_embeddings.weight",
    "head/decoder/position_embedding/embeddings": (
        "embeddings.position_embeddings.weight"
    ),
    "head/bias": "lm_predictions.lm_head.bias",
}
_NORMS = {
    "embeddings/layer_norm": "embeddings.LayerNorm",
    "encoder/relative_norm": "encoder.LayerNorm",
    "encoder/convolution/layer_norm": "encoder.conv.LayerNorm",
    "encoder/block_{i}/attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder/block_{i}/output_norm": "encoder.layer.{i}.output.LayerNorm",
    "head/layer_norm": "lm_predictions.lm_head.LayerNorm",
}
_ATTENTION = "encoder/block_{i}/attention/"
_THEIR_ATTENTION = "encoder.layer.{i}.attention."
_KERNELS = {
    "embeddings/projection": "embeddings.embed_proj",
    "encoder/convolution/convolution": "encoder.conv.conv",
    _ATTENTION + "query": _THEIR_ATTENTION + "self.query_proj",
    _ATTENTION + "key": _THEIR_ATTENTION + "self.key_proj",
    _ATTENTION + "value": _THEIR_ATTENTION + "self.value_proj",
    _ATTENTION + "position_key": _THEIR_ATTENTION + "self.pos_key_proj",
    _ATTENTION + "position_query": _THEIR_ATTENTION + "self.pos_query_proj",
    _ATTENTION + "attention_output": _THEIR_ATTENTION + "output.dense",
    "encoder/block_{i}/intermediate": "encoder.layer.{i}.intermediate.dense",
    "encoder/block_{i}/output": "encoder.layer.{i}.output.dense",
    "head/dense": "lm_predictions.lm_head.dense",
    "head/pooler": "pooler.dense",
    "head/logits": "classifier",
}
# Other spellings of theirs -> the ones above: the masked-LM head of Hugging Face,
# attention of v1, the prefix of the oldest official files.
_ALIASES = {
    "cls.predictions.transform.": "lm_predictions.lm_head.",
    "cls.predictions.bias": "lm_predictions.lm_head.bias",
    "attention.self.pos_proj.": "attention.self.pos_key_proj.",
    "attention.self.pos_q_proj.": "attention.self.pos_query_proj.",
    "attention.self.q_bias": "attention.self.query_proj.bias",
    "attention.self.v_bias": "attention.self.value_proj.bias",
}
# What a model may leave unread: heads it does not have, a copy of the token table,
# positions 0, 1, 2, ..., and a relative table without position terms.
_IGNORABLE = (
    "lm_predictions.",
    "mask_predictions.",
    "pooler.",
    "classifier.",
    "cls.predictions.decoder.",
    "embeddings.position_ids",
    "embeddings.position_embeddings.",
    "config",
)
_RELATIVE = ("encoder.rel_embeddings.", "encoder.LayerNorm.")


def argument_names(function):
    """Names of a function's own arguments, without self and catch-alls."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in kinds and p.name != "self"]


def foreign_config(preset, load_weights):
    """Backbone arguments of a published size or a Hugging Face / Microsoft folder.

    Args:
        preset: str, as `DebertaBackbone.from_preset` takes it.
        load_weights: bool. Whether the caller is going to read the weights.

    Returns:
        dict of `DebertaBackbone` arguments, or None where the preset is KerasHub's.

    Raises:
        ValueError: if nothing of that name is known, or its config asks for what
            no published model has.
    """
    if preset in PUBLISHED_SIZES:
        if load_weights:
            raise ValueError(
                f"{preset!r} names a geometry, not a folder of weights: pass "
                "load_weights=False for fresh weights, or the folder of a "
                "checkpoint that was downloaded"
            )
        return PUBLISHED_SIZES[preset]
    if "://" in preset:
        return None
    if not os.path.isdir(preset):
        raise ValueError(
            f"No preset {preset!r}: neither a folder nor a published size "
            f"({', '.join(PUBLISHED_SIZES)})"
        )
    path = os.path.join(preset, CONFIG_FILE)
    if not os.path.exists(path):
        raise ValueError(f"The folder {preset!r} has no {CONFIG_FILE}")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if "registered_name" in config:
        return None
    return backbone_arguments(config, _is_first_version(config, preset))


def backbone_arguments(config, first_version):
    """Translates a Hugging Face / Microsoft config to `DebertaBackbone` arguments.

    Args:
        config: dict, the content of `config.json`.
        first_version: bool. Whether the weights are of v1.

    Raises:
        ValueError: if it asks for talking heads, which no published model has.
    """
    if config.get("talking_head"):
        raise ValueError("talking_head is not supported: no published model has it")
    epsilon = config.get("layer_norm_eps", 1e-7)
    longest = config.get("max_relative_positions", -1)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "max_sequence_length": config.get("max_position_embeddings", 512),
        "max_relative_distance": longest if longest > 0 else None,
        "bucket_size": 0
        if first_version
        else max(config.get("position_buckets", 0), 0),
        "position_terms": _position_terms(config),
        "share_position_projections": (
            not first_version and config.get("share_att_key", False)
        ),
        "key_bias": not first_version,
        "normalize_relative_embeddings": (
            "layer_norm" in config.get("norm_rel_ebd", "none").lower()
        ),
        "absolute_position_input": config.get("position_biased_input", True),
        "num_segments": config.get("type_vocab_size", 0),
        "embedding_dim": config.get("embedding_size"),
        "convolution_kernel_size": config.get("conv_kernel_size", 0),
        "convolution_groups": config.get("conv_groups", 1),
        "convolution_activation": config.get("conv_act", "tanh"),
        "activation": config.get("hidden_act", "gelu"),
        "layer_norm_epsilon": epsilon,
    }


def head_arguments(preset):
    """`DebertaTextClassifier` arguments in a foreign folder's config (SPEC 2.4)."""
    with open(os.path.join(preset, CONFIG_FILE), encoding="utf-8") as file:
        config = json.load(file)
    names = config.get("id2label")
    pooling = config.get("pooling", {})
    return {
        "num_classes": len(names) if names else None,
        "labels": [names[str(i)] for i in range(len(names))] if names else None,
        "pooler_activation": (
            config.get("pooler_hidden_act")
            or pooling.get("hidden_act")
            or config.get("hidden_act", "gelu")
        ),
    }


def _position_terms(config):
    terms = config.get("pos_att_type") or []
    if isinstance(terms, str):
        terms = terms.split("|")
    terms = [term.strip().lower() for term in terms]
    terms = tuple(term for term in ("c2p", "p2c") if term in terms)
    if terms and not config.get("relative_attention", False):
        raise ValueError(
            "relative_attention=false with position terms is not supported: the "
            "terms would only change the scale of scores. Received: "
            f"pos_att_type={config['pos_att_type']!r}"
        )
    return terms


def _is_first_version(config, folder):
    if "model_type" in config:
        return config["model_type"] == "deberta"
    path = os.path.join(folder, WEIGHTS_FILE)
    with safetensors.safe_open(path, framework="numpy") as file:
        return any(name.endswith(".in_proj.weight") for name in file.keys())


def read_tensors(folder):
    """All tensors of a foreign folder under the names of the table.

    Returns:
        dict of arrays, as stored: kernels are (out, in).
    """
    path = os.path.join(folder, WEIGHTS_FILE)
    if not os.path.exists(path):
        raise ValueError(f"The folder {folder!r} has no {WEIGHTS_FILE}")
    with open(os.path.join(folder, CONFIG_FILE), encoding="utf-8") as file:
        num_heads = json.load(file)["num_attention_heads"]
    return standard_names(safetensors.numpy.load_file(path), num_heads)


def standard_names(tensors, num_heads):
    """Renames tensors to the names of the table, and splits what v1 stores as one.

    Args:
        tensors: dict of arrays under any of the known spellings.
        num_heads: int.

    Returns:
        dict of arrays.
    """
    standard = {}
    for name, value in tensors.items():
        for prefix in ("deberta.", "bert."):
            name = name.removeprefix(prefix)
        for alias, replacement in _ALIASES.items():
            name = name.replace(alias, replacement)
        if name.endswith(".in_proj.weight"):
            stem = name.removesuffix("in_proj.weight")
            for part, kernel in _split_projection(value, num_heads).items():
                standard[f"{stem}{part}.weight"] = kernel
        else:
            standard[name] = value
    return standard


def _split_projection(kernel, num_heads):
    """v1 keeps query, key and value rows interleaved by head (SPEC 8)."""
    by_head = kernel.reshape(num_heads, 3, -1, kernel.shape[-1])
    parts = ("query_proj", "key_proj", "value_proj")
    return {
        part: by_head[:, index].reshape(-1, kernel.shape[-1])
        for index, part in enumerate(parts)
    }


def assign(variables, tensors):
    """Sets every variable from its tensor.

    Args:
        variables: iterable of Keras variables, known by their paths.
        tensors: dict of arrays under the names of the table.

    Raises:
        ValueError: if a tensor is missing, has another shape, or belongs to no
            variable and is not known to be ignorable. Nothing is set then.
    """
    values, problems = {}, []
    variables = {variable.path: variable for variable in variables}
    for path, variable in variables.items():
        name = their_name(path)
        if name not in tensors:
            problems.append(f"missing {name} {tuple(variable.shape)}")
            continue
        value = _our_layout(path, tensors[name])
        if value.shape != tuple(variable.shape):
            problems.append(
                f"{name} gives {value.shape}, the model has {tuple(variable.shape)}"
            )
        values[path] = value
    problems += [
        f"unexpected {name} {tensors[name].shape}"
        for name in _unread(variables, tensors)
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            "The tensors do not fit the model: " + "; ".join(problems[:8]) + more
        )
    for path, value in values.items():
        variables[path].assign(value)


def their_name(path):
    """The Hugging Face / Microsoft name of a variable of ours.

    Args:
        path: str, like "encoder/block_3/attention/query/kernel".

    Raises:
        ValueError: if the table has no such variable.
    """
    number = re.search(r"/block_(\d+)/", path)
    pattern = path if number is None else path.replace(number[0], "/block_{i}/")
    index = "" if number is None else number[1]
    if pattern in _TABLES:
        return _TABLES[pattern].replace("{i}", index)
    layer, _, kind = pattern.rpartition("/")
    for table, kinds in (
        (_NORMS, {"gamma": ".weight", "beta": ".bias"}),
        (_KERNELS, {"kernel": ".weight", "bias": ".bias"}),
    ):
        if layer in table and kind in kinds:
            return table[layer].replace("{i}", index) + kinds[kind]
    raise ValueError(f"No name in Hugging Face's layout for the variable {path!r}")


def _our_layout(path, value):
    return value.T if path.endswith("/kernel") else value


def _unread(variables, tensors):
    ignorable = _IGNORABLE
    if "encoder/relative_embeddings" not in variables:
        ignorable += _RELATIVE
    read = {their_name(path) for path in variables}
    return [
        name for name in tensors if name not in read and not name.startswith(ignorable)
    ]
