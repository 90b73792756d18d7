"""Between the tensors of a checkpoint and the variables of a model, one at a time."""

import ml_dtypes
import numpy as np

from deberta_tf.checkpoints import names
from deberta_tf.torch_files import StoredTensor

_LISTED = 20
_ADAPTER = ("/lora_kernel_a", "/lora_kernel_b")


def fresh_parts(variables, tensors):
    """Parts of heads that a model has and a checkpoint has not.

    Args:
        variables: iterable of Keras variables, known by their paths.
        tensors: dict of `StoredTensor` by standard names.

    Returns:
        list of str, the beginnings of their standard names, without the last dot.
    """
    parts = (*names.HEAD_PARTS, names.DECODER_POSITIONS_NAME)
    needed = {names.their_name(v.path) for v in variables if _in_head(v.path)}
    return [
        part.rstrip(".")
        for part in parts
        if any(name.startswith(part) for name in needed)
        and not any(name.startswith(part) for name in tensors)
    ]


def fitting_head(variables, tensors):
    """Leaves out a classifier that belongs to a head of another kind or size.

    Args:
        variables: iterable of Keras variables, known by their paths.
        tensors: dict of `StoredTensor` by standard names.

    Returns:
        dict of `StoredTensor`.
    """
    shapes = {names.their_name(v.path): tuple(v.shape) for v in variables}
    ours, theirs = shapes.get("classifier.weight"), tensors.get("classifier.weight")
    if ours is None or theirs is None:
        return tensors
    if _kind(shapes) == _kind(tensors) and ours[-1] == theirs.shape[0]:
        return tensors
    return {k: v for k, v in tensors.items() if not k.startswith("classifier.")}


def _kind(tensor_names):
    """Which layer stands before a classifier."""
    layers = ("pooler.", "proj.")
    return [any(name.startswith(layer) for name in tensor_names) for layer in layers]


def assign(variables, tensors):
    """Sets every variable from its tensor, but for parts of heads that have none.

    Args:
        variables: iterable of Keras variables, known by their paths.
        tensors: dict of `StoredTensor` by standard names. One is read at a time.

    Returns:
        list of str, the parts that were left as they are, see `fresh_parts`.

    Raises:
        ValueError: if a tensor is missing, has another shape, or belongs to no
            variable and is not known to be ignorable. Nothing is set then.
    """
    variables = list(variables)
    fresh = fresh_parts(variables, tensors)
    left = tuple(f"{part}." for part in fresh)
    pairs = [(names.their_name(variable.path), variable) for variable in variables]
    pairs = [
        (name, variable)
        for name, variable in pairs
        if not (left and _in_head(variable.path) and name.startswith(left))
    ]
    _check(pairs, tensors)
    for name, variable in pairs:
        value = names.swap_layout(variable.path, tensors[name].read())
        variable.assign(value.astype(numpy_dtype(variable.dtype), copy=False))
    return fresh


def stored_tensors(model, variables, dtype=None):
    """The tensors that a checkpoint holds of a model, read when they are written.

    LoRA adapters are added to their kernels.

    Args:
        model: Keras model.
        variables: iterable of its variables, known by their paths.
        dtype: str. Of the tensors; None: that of each variable.

    Returns:
        dict of `StoredTensor` by standard names.
    """
    adapters = adapters_of(model)
    return {
        names.their_name(v.path): _stored(v, dtype, adapters.get(v.path))
        for v in variables
        if not v.path.endswith(_ADAPTER)
    }


def adapters_of(model):
    """The layers of a model that have a LoRA adapter (`enable_lora`).

    Returns:
        dict of layers by the paths of their kernels.
    """
    layers = model._flatten_layers(include_self=False)
    adapted = [layer for layer in layers if getattr(layer, "lora_enabled", False)]
    return {
        layer.lora_kernel_a.path.replace(_ADAPTER[0], "/kernel"): layer
        for layer in adapted
    }


def _stored(variable, dtype, adapter):
    dtype = numpy_dtype(dtype or variable.dtype)
    kernel = variable.path.endswith("/kernel")
    shape = tuple(reversed(variable.shape)) if kernel else tuple(variable.shape)

    def read():
        value = np.asarray(variable)
        if adapter is not None:
            one, other = map(np.asarray, (adapter.lora_kernel_a, adapter.lora_kernel_b))
            value = value + adapter.lora_alpha / adapter.lora_rank * (one @ other)
        value = value.astype(dtype, copy=False)
        return names.swap_layout(variable.path, value)

    return StoredTensor(shape, dtype, read)


def numpy_dtype(name):
    """NumPy dtype of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _in_head(path):
    return not names.own_path(path).startswith(("embeddings/", "encoder/"))


def _check(pairs, tensors):
    problems = []
    for name, variable in pairs:
        shape = tuple(variable.shape)
        if variable.path.endswith("/kernel"):
            shape = shape[::-1]
        if name not in tensors:
            problems.append(f"missing {name} {shape}" + _hint(name, tensors))
        elif tensors[name].shape != shape:
            problems.append(f"{name} is {tensors[name].shape}, the model has {shape}")
    read = {name for name, _ in pairs}
    ignorable = _ignorable(read)
    problems += [
        f"unexpected {name} {tensor.shape}{_place(name)}"
        for name, tensor in tensors.items()
        if name not in read and not name.startswith(ignorable)
    ]
    if problems:
        more = len(problems) - _LISTED
        listed = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError("The tensors do not fit the model: " + "; ".join(listed))


def _place(name):
    """Where a model with that tensor keeps it, to tell what this one lacks."""
    path = names.our_path(name)
    return "" if path is None else f" (of a model with {path})"


def _hint(name, tensors):
    delta = f"{name.removesuffix('weight')}_weight"
    if delta not in tensors:
        return ""
    return (
        f" (there is only its difference from the generator's table, {delta}: load "
        "it with the generator, as DebertaReplacedTokenDetection)"
    )


def _ignorable(read):
    heads = tuple(
        part
        for part in names.HEAD_PARTS
        if not any(name.startswith(part) for name in read)
    )
    relative = ()
    if not any(name.startswith(names.RELATIVE) for name in read):
        relative = names.RELATIVE
    return (*names.IGNORABLE, *heads, *relative)
