"""`config.json` of Hugging Face and Microsoft, to our arguments and back."""

import warnings

# Hugging Face's activations -> Keras's, where both compute the same.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# The default of Hugging Face where a config names no labels.
_UNNAMED = "LABEL_"
_FIRST_VERSION, _LATER_VERSION = "deberta", "deberta-v2"
# Theirs -> ours, where the values are the same.
_SIZES = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
}
_OPTIONS = {
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_sequence_length", 512),
    "position_biased_input": ("absolute_position_input", True),
    "type_vocab_size": ("num_segments", 0),
    "embedding_size": ("embedding_dim", None),
    "conv_kernel_size": ("convolution_kernel_size", 0),
    "conv_groups": ("convolution_groups", 1),
    "conv_act": ("convolution_activation", "tanh"),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("layer_norm_epsilon", 1e-7),
}


def is_first_version(config, names):
    """Whether a config, or else the names of its tensors, are of v1.

    Args:
        config: dict, the content of `config.json`.
        names: iterable of str, the names of the tensors; empty without weights.

    Raises:
        ValueError: if the config is of another model than DeBERTa, or nothing tells.
    """
    model_type = config.get("model_type")
    if model_type in (_FIRST_VERSION, _LATER_VERSION):
        return model_type == _FIRST_VERSION
    if model_type is not None:
        raise ValueError(
            f"The config must be of model_type {_FIRST_VERSION!r} or "
            f"{_LATER_VERSION!r}. Received: {model_type!r}"
        )
    if not names:
        raise ValueError(
            "The config has no model_type, and there are no weights to tell v1 from v2"
        )
    return any(name.endswith(".in_proj.weight") for name in names)


def backbone_arguments(config, first_version):
    """Translates a Hugging Face / Microsoft config to `DebertaBackbone` arguments.

    Args:
        config: dict, the content of `config.json`.
        first_version: bool. Whether the weights are of v1.

    Raises:
        ValueError: if a size is missing, or if it asks for talking heads, which no
            published model has.
    """
    if config.get("talking_head"):
        raise ValueError("talking_head is not supported: no published model has it")
    missing = [name for name in _SIZES if name not in config]
    if missing:
        raise ValueError(f"The config has no {', '.join(missing)}")
    longest = config.get("max_relative_positions", -1)
    options = {
        ours: config.get(theirs, default)
        for theirs, (ours, default) in _OPTIONS.items()
    }
    for name in ("activation", "convolution_activation"):
        options[name] = read_activation(options[name])
    buckets = 0 if first_version else config.get("position_buckets", 0)
    return {
        **{ours: config[theirs] for theirs, ours in _SIZES.items()},
        **options,
        "max_relative_distance": longest if longest > 0 else None,
        "bucket_size": max(buckets, 0),
        "position_terms": _position_terms(config),
        "share_position_projections": (
            not first_version and config.get("share_att_key", False)
        ),
        "key_bias": not first_version,
        "normalize_relative_embeddings": (
            not first_version
            and "layer_norm" in config.get("norm_rel_ebd", "none").lower()
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


def foreign_config(arguments):
    """Translates `DebertaBackbone` arguments to a config that Hugging Face reads.

    Args:
        arguments: dict, all the arguments as `get_config` gives them.

    Raises:
        ValueError: if neither v1 nor v2 of Hugging Face has such a model.
    """
    first_version = not arguments["key_bias"]
    _check_writable(arguments, first_version)
    terms = arguments["position_terms"]
    longest = arguments["max_relative_distance"]
    config = {
        "model_type": _FIRST_VERSION if first_version else _LATER_VERSION,
        **{theirs: arguments[ours] for theirs, ours in _SIZES.items()},
        **{theirs: arguments[ours] for theirs, (ours, _) in _OPTIONS.items()},
        "hidden_act": write_activation(arguments["activation"]),
        "conv_act": write_activation(arguments["convolution_activation"]),
        "relative_attention": bool(terms),
        "pos_att_type": "|".join(terms) or "none",
        "max_relative_positions": longest or -1,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }
    if not first_version:
        config |= {
            "position_buckets": arguments["bucket_size"] or -1,
            "share_att_key": arguments["share_position_projections"],
            "norm_rel_ebd": (
                "layer_norm" if arguments["normalize_relative_embeddings"] else "none"
            ),
        }
    return config


def _check_writable(arguments, first_version):
    problems = []
    if arguments["head_dim"] * arguments["num_heads"] != arguments["hidden_dim"]:
        problems.append("head_dim")
    if first_version:
        names = (
            "bucket_size",
            "share_position_projections",
            "normalize_relative_embeddings",
            "convolution_kernel_size",
        )
        problems += [name for name in names if arguments[name]]
    if problems:
        found = ", ".join(f"{name}={arguments[name]}" for name in problems)
        raise ValueError(
            "Hugging Face has no such model"
            f"{' without key_bias' if first_version else ''}. Received: {found}"
        )


def read_labels(config):
    """Names of the classes in the order of the logits; None where they have none.

    Names that are no names, since two classes share one or their numbers leave some
    out, are left unread, with a warning.
    """
    names = config.get("id2label")
    if not names:
        return None
    names = {int(index): str(name) for index, name in names.items()}
    labels = [name for _, name in sorted(names.items())]
    if labels == placeholders(len(labels)):
        return None
    distinct = {name.casefold() for name in labels}
    if sorted(names) != list(range(len(names))) or len(distinct) < len(names):
        warnings.warn(
            f"id2label does not name classes 0, 1, 2, ... apart: {names}. They go "
            "without names",
            stacklevel=6,
        )
        return None
    return labels


def placeholders(num_classes):
    """Hugging Face's names of classes that have none."""
    return [f"{_UNNAMED}{index}" for index in range(num_classes)]


def label_config(labels, num_classes):
    """The entries of a config that name the classes, in the order of the logits."""
    labels = labels or placeholders(num_classes)
    return {
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def read_activation(name):
    """Keras's name of an activation of theirs.

    Raises:
        ValueError: if Keras has none that computes the same.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"An activation must be one of {', '.join(_ACTIVATIONS)}. Received: "
            f"{name!r}"
        )
    return _ACTIVATIONS[name]


def write_activation(activation):
    """Their name of one of Keras's activations, given by name."""
    if activation not in _ACTIVATIONS.values():
        known = ", ".join(sorted({*_ACTIVATIONS.values()}))
        raise ValueError(
            "Hugging Face has no activation that computes the same; these it has: "
            f"{known}. Received: {activation!r}"
        )
    return activation


def read_pooler(config):
    """Arguments of the classifiers that say how they pool (SPEC 2.4)."""
    pooling = config.get("pooling", {})
    return {
        "pooler_activation": read_activation(
            config.get("pooler_hidden_act")
            or pooling.get("hidden_act")
            or config.get("hidden_act", "gelu")
        ),
        "pooler_dropout": config.get("pooler_dropout", pooling.get("dropout", 0.0)),
        "dropout": config.get("cls_dropout", config.get("cls_drop_out")),
    }
