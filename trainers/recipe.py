"""Settings of fine-tuning for a task and a published size: `recipes/finetune.yaml`."""

import functools
import inspect
import os

import yaml

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.files import UsageError
from deberta_tf.published import PUBLISHED_SIZES, published_handle

PATH = os.path.join(os.path.dirname(__file__), "recipes", "finetune.yaml")
# The baseline's geometry has no weights of ours.
SIZES = tuple(name for name in PUBLISHED_SIZES if name != "bert_base")

_NEEDED = ("epochs", "learning_rate", "batch_size", "classifier_dropout")
_WARMUPS = ("warmup_steps", "warmup_fraction")
_NUMBERS = (*_NEEDED, *_WARMUPS, "sift_weight", "sift_step_size", "sift_initial_scale")
_PARTS = ("mnli_checkpoints", "sift", "ours_by_size", "tasks")
_TASK_PARTS = ("sequence_length", "starts_from_mnli", "published", "ours", "sift")


def recipe(task, size, sift=False):
    """Settings of `trainers.finetune`, by their names there.

    Args:
        task: str, one of `tasks()`.
        size: str, one of `SIZES`.
        sift: bool. Of scale-invariant fine-tuning.

    Returns:
        dict from setting to value; `source` says whose values they are. Either
        `warmup_steps` or `warmup_fraction` is among them.

    Raises:
        UsageError: if there is no such task or size.
    """
    entry = _entry(task, size)
    row = _row(_content(), entry, size, sift)
    settings = {"sequence_length": entry["sequence_length"], **row}
    if sift:
        settings |= {"sift": True, **_content()["sift"]}
    return {**settings, "official_schedule": True}


def source(task, size, sift=False):
    """Whose values a recipe has: "published" or "ours".

    Where a task has those of another, that one follows: "published for mnli".
    """
    rows = _entry(task, size).get("sift" if sift else "published", {})
    whose = "published" if size in rows else "ours"
    like = _content()["tasks"][task].get("like")
    return f"{whose} for {like}" if like else whose


def start(task, size):
    """Handle of the weights that a recipe starts from: as pretrained, or of MNLI."""
    handle = published_handle(size)
    from_mnli = _entry(task, size).get("starts_from_mnli", False)
    if from_mnli and size in _content()["mnli_checkpoints"]:
        return f"{handle}-mnli"
    return handle


def tasks():
    """Names of the tasks that have recipes."""
    return tuple(_content()["tasks"])


def size_of(backbone_config):
    """The published size that a backbone is of.

    Args:
        backbone_config: dict, arguments of a `DebertaBackbone`.

    Returns:
        str, one of `SIZES`; None: its layers, widths, vocabulary or kind of attention
        are of none.
    """
    names = {name for size in PUBLISHED_SIZES.values() for name in size}
    parameters = inspect.signature(DebertaBackbone).parameters
    defaults = {name: parameters[name].default for name in names}
    given = {**defaults, **backbone_config}
    found = {name: _comparable(given[name]) for name in names}
    for size in SIZES:
        wanted = {**defaults, **PUBLISHED_SIZES[size]}
        if all(_comparable(wanted[name]) == found[name] for name in names):
            return size
    return None


def _comparable(value):
    return tuple(value) if isinstance(value, list) else value


def read_recipes(path=PATH):
    """What the file holds, checked.

    Raises:
        UsageError: if a name in it is unknown, a setting is no number, or a task lacks
            a setting for a size.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict) or set(content) != set(_PARTS):
        raise UsageError(f"{path} must hold {', '.join(_PARTS)}, and nothing else")
    _check_names(f"{path}, mnli_checkpoints", content["mnli_checkpoints"], SIZES)
    _check_settings(f"{path}, sift", content["sift"])
    _check_rows(f"{path}, ours_by_size", content["ours_by_size"])
    for task, entry in content["tasks"].items():
        _check_task(f"{path}, {task}", entry, content)
    return content


def _check_task(where, entry, content):
    if "like" in entry:
        _check_names(where, entry, ("like",))
        _check_names(where, [entry["like"]], content["tasks"])
        return
    _check_names(where, entry, _TASK_PARTS)
    for part in ("published", "sift"):
        _check_rows(f"{where}, {part}", entry.get(part, {}))
    _check_settings(f"{where}, ours", entry.get("ours", {}))
    if not isinstance(entry.get("sequence_length"), int):
        raise UsageError(f"{where} needs a sequence_length")
    for size in SIZES:
        row = _row(content, entry, size, sift=False)
        missing = [name for name in _NEEDED if name not in row]
        if not any(name in row for name in _WARMUPS):
            missing.append(_WARMUPS[0])
        if missing:
            raise UsageError(f"{where} has no {missing[0]} for {size}")


def _check_rows(where, rows):
    _check_names(where, rows, SIZES)
    for size, row in rows.items():
        _check_settings(f"{where}, {size}", row)


def _check_settings(where, row):
    _check_names(where, row, (*_NUMBERS, "precision"))
    for name, value in row.items():
        if name in _NUMBERS and not isinstance(value, int | float):
            raise UsageError(
                f"{where}: {name} must be a number, such as 1.0e-5. Found: {value!r}"
            )


def _check_names(where, found, known):
    for name in found:
        if name not in known:
            raise UsageError(
                f"{where} has an unknown name {name!r}; known are {', '.join(known)}"
            )


_content = functools.cache(read_recipes)


def _entry(task, size):
    """What the file says of a task, or of the one that it has the recipes of."""
    for kind, name, known in (("task", task, tasks()), ("size", size, SIZES)):
        if name not in known:
            raise UsageError(
                f"there is no recipe for the {kind} {name!r}; "
                f"{kind}s are {', '.join(known)}"
            )
    entry = _content()["tasks"][task]
    return _content()["tasks"][entry["like"]] if "like" in entry else entry


def _row(content, entry, size, sift):
    """Settings of a size; the published ones, or those that are ours."""
    by_size = dict(content["ours_by_size"].get(size, {}))
    weight = {"sift_weight": by_size.pop("sift_weight", None)}
    if sift and size in entry.get("sift", {}):
        return entry["sift"][size]
    row = entry.get("published", {}).get(size) or {**by_size, **entry.get("ours", {})}
    return {**row, **weight} if sift else row
