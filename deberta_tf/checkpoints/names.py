"""The one table of tensor names, read in both directions, and the layouts behind it.

Ours are the paths of variables, like "encoder/block_3/attention/query/kernel"; theirs
are the names of Microsoft's v2 code without the prefix "deberta.", here called the
standard names. v1 and Hugging Face's older masked-LM head spell some of them
otherwise. Source: SPEC 3.3, 8.
"""

import re

import numpy as np

from deberta_tf.torch_files import StoredTensor

_ATTENTION = "encoder/block_{i}/attention/"
_THEIR_ATTENTION = "encoder.layer.{i}.attention."
_TABLES = {
    "embeddings/token_embedding": "embeddings.word_embeddings",
    "embeddings/segment_embedding": "embeddings.token_type_embeddings",
    "embeddings/position_embedding": "embeddings.position_embeddings",
}
_NORMS = {
    "embeddings/layer_norm": "embeddings.LayerNorm",
    "encoder/relative_norm": "encoder.LayerNorm",
    "encoder/convolution/layer_norm": "encoder.conv.LayerNorm",
    "encoder/block_{i}/attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder/block_{i}/output_norm": "encoder.layer.{i}.output.LayerNorm",
    "head/layer_norm": "lm_predictions.lm_head.LayerNorm",
    "replaced_token_head/layer_norm": "mask_predictions.LayerNorm",
}
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
    "head/hidden": "proj",
    "head/logits": "classifier",
    "head/span": "qa_outputs",
    "replaced_token_head/dense": "mask_predictions.dense",
    "replaced_token_head/logits": "mask_predictions.classifier",
}


def _by_kind():
    kinds = (
        (_TABLES, {"embeddings": "weight"}),
        (_NORMS, {"gamma": "weight", "beta": "bias"}),
        (_KERNELS, {"kernel": "weight", "bias": "bias"}),
    )
    for layers, weights in kinds:
        for ours, theirs in layers.items():
            for our_kind, their_kind in weights.items():
                yield f"{ours}/{our_kind}", f"{theirs}.{their_kind}"


# Ours -> standard; {i} is the number of a block.
TABLE = {
    **dict(_by_kind()),
    "encoder/relative_embeddings": "encoder.rel_embeddings.weight",
    "head/bias": "lm_predictions.lm_head.bias",
}
_INVERSE = {theirs: ours for ours, theirs in TABLE.items()}
# The mask decoder keeps the positions that other models add at the input.
_DECODER_POSITIONS = "head/decoder/position_embedding/"
DECODER_POSITIONS_NAME = "embeddings.position_embeddings."

# Parts of heads, by the beginnings of standard names.
HEAD_PARTS = (
    "lm_predictions.",
    "mask_predictions.",
    "pooler.",
    "proj.",
    "classifier.",
    "qa_outputs.",
)
# What a model may leave unread besides the parts of heads that it does not have: a
# copy of the token table, positions 0, 1, 2, ..., the table of positions of a model
# that has no use for them, the deltas of GDES beside the sums (SPEC 4.3), and an
# entry of v1-large-mnli that is no tensor.
IGNORABLE = (
    "cls.predictions.decoder.",
    "embeddings.position_ids",
    "embeddings.position_embeddings.",
    "embeddings.word_embeddings._weight",
    "config",
)
RELATIVE = ("encoder.rel_embeddings.", "encoder.LayerNorm.")

# Standard -> spelling of v1.
_FIRST_VERSION = {
    ".self.pos_key_proj.": ".self.pos_proj.",
    ".self.pos_query_proj.": ".self.pos_q_proj.",
    ".self.query_proj.bias": ".self.q_bias",
    ".self.value_proj.bias": ".self.v_bias",
}
# Standard -> spelling of Hugging Face's masked-LM head with `legacy=true`.
_LEGACY_HEAD = {
    "lm_predictions.lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_predictions.lm_head.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "lm_predictions.lm_head.bias": "cls.predictions.bias",
}
_PREFIXES = ("deberta.", "bert.")
_PROJECTIONS = ("query_proj", "key_proj", "value_proj")
_MERGED = "in_proj.weight"


def their_name(path):
    """The standard name of a variable of ours.

    Raises:
        ValueError: if the table has no such variable.
    """
    path = own_path(path).replace(_DECODER_POSITIONS, "embeddings/position_embedding/")
    pattern, index = _take_index(path, r"(/block_)(\d+)(/)")
    if pattern not in TABLE:
        raise ValueError(f"No name in Hugging Face's layout for the variable {path!r}")
    return TABLE[pattern].replace("{i}", index)


def own_path(path):
    """A variable's path without the scopes that a model was built in."""
    match = re.search(
        r"(?:^|/)((?:embeddings|encoder|head|replaced_token_head)/.*)", path
    )
    return match[1] if match else path


def our_path(name):
    """The path of the variable of ours with that standard name; None: no such one."""
    pattern, index = _take_index(name, r"(encoder\.layer\.)(\d+)(\.)")
    path = _INVERSE.get(pattern)
    return path and path.replace("{i}", index)


def _take_index(text, expression):
    """Puts {i} for the number of a block, and returns the number beside it."""
    match = re.search(expression, text)
    if match is None:
        return text, ""
    return text.replace(match[0], f"{match[1]}{{i}}{match[3]}"), match[2]


def swap_layout(path, value):
    """Between our layout and theirs, either way: kernels are transposed."""
    return value.T if path.endswith("/kernel") else value


def standard_tensors(tensors, num_heads):
    """Renames the tensors of a file, and splits what v1 stores as one.

    Args:
        tensors: dict of `StoredTensor` under any of the known spellings.
        num_heads: int.

    Returns:
        dict of `StoredTensor` under standard names.

    Raises:
        ValueError: if two tensors come to one name.
    """
    standard = {}
    for name, tensor in tensors.items():
        for new_name, part in _standard_parts(name, tensor, num_heads):
            if new_name in standard:
                raise ValueError(f"The checkpoint holds {new_name} twice ({name})")
            standard[new_name] = part
    return standard


def _standard_parts(name, tensor, num_heads):
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for replacement, spelling in (*_FIRST_VERSION.items(), *_LEGACY_HEAD.items()):
        name = name.replace(spelling, replacement)
    if not name.endswith(_MERGED):
        return [(name, tensor)]
    stem = name.removesuffix(_MERGED)
    return [
        (f"{stem}{part}.weight", _projection_rows(tensor, name, index, num_heads))
        for index, part in enumerate(_PROJECTIONS)
    ]


def _projection_rows(merged, name, index, num_heads):
    """Rows of query (0), key (1) or value (2); v1 interleaves them by head."""
    if len(merged.shape) != 2 or merged.shape[0] % (3 * num_heads):
        raise ValueError(
            f"{name} must have a multiple of 3 x {num_heads} heads rows. Received: "
            f"shape={merged.shape}"
        )
    rows, columns = merged.shape

    def read():
        return (
            merged.read()
            .reshape(num_heads, 3, -1, columns)[:, index]
            .reshape(-1, columns)
        )

    return StoredTensor((rows // 3, columns), merged.dtype, read)


def spelled_tensors(tensors, num_heads, first_version, legacy_head):
    """The inverse of `standard_tensors`: names and layouts of files to write.

    Args:
        tensors: dict of `StoredTensor` under standard names.
        num_heads: int.
        first_version: bool. Whether to spell as v1 does.
        legacy_head: bool. Whether to spell as Hugging Face's older masked-LM head.

    Returns:
        dict of `StoredTensor`.
    """
    spelled = {}
    for name, tensor in tensors.items():
        if first_version and name.endswith("self.query_proj.weight"):
            stem = name.removesuffix("query_proj.weight")
            parts = [tensors[f"{stem}{part}.weight"] for part in _PROJECTIONS]
            name, tensor = stem + _MERGED, _merge_projections(parts, num_heads)
        elif first_version and re.search(r"self\.(key|value)_proj\.weight$", name):
            continue
        spelled[_spelling(name, first_version, legacy_head)] = tensor
    return spelled


def _merge_projections(parts, num_heads):
    rows, columns = parts[0].shape

    def read():
        by_head = [part.read().reshape(num_heads, -1, columns) for part in parts]
        return np.stack(by_head, axis=1).reshape(-1, columns)

    return StoredTensor((3 * rows, columns), parts[0].dtype, read)


def _spelling(name, first_version, legacy_head):
    changes = _FIRST_VERSION if first_version else {}
    if legacy_head:
        changes = {**changes, **_LEGACY_HEAD}
    is_head = name.startswith(HEAD_PARTS)
    for standard, spelling in changes.items():
        name = name.replace(standard, spelling)
    return name if is_head else _PREFIXES[0] + name
