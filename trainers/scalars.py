"""Scalars of a run by step: metrics.jsonl and TensorBoard."""

import json
import os

import tensorflow as tf

from deberta_tf import files
from trainers import devices

SCALARS_FILE = "metrics.jsonl"


class Scalars:
    """Scalars by step, to `metrics.jsonl` and to TensorBoard; the chief writes them.

    Args:
        model_dir: str.
        first_step: int. Lines of later steps, from a run that was killed before it
            saved them, are taken out of `metrics.jsonl`.
    """

    def __init__(self, model_dir, first_step):
        self._board = None
        self._path = os.path.join(model_dir, SCALARS_FILE)
        self._kept = [line for line in _lines(self._path) if line["step"] <= first_step]
        if not devices.is_chief():
            return
        files.atomic_write(self._path, "".join(map(json_line, self._kept)))
        folder = os.path.join(model_dir, "tensorboard")
        self._board = tf.summary.create_file_writer(folder)

    def has(self, step, name):
        """Whether a run that this one goes on from wrote a scalar at that step."""
        return any(line["step"] == step and name in line for line in self._kept)

    def write(self, step, scalars):
        """Writes {name: number}; a name is "train/loss", "dev/accuracy" and so on."""
        if self._board is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json_line({"step": step, **scalars}))
        with self._board.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        self._board.flush()


def _lines(path):
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            # Only the last line can be cut short, by a kill in the midst of it.
            if line.endswith("\n"):
                yield _scalars_of(line, f"{path}, line {number}")


def _scalars_of(line, place):
    try:
        scalars = json.loads(line)
        step = scalars["step"]
    except (ValueError, TypeError, KeyError):
        step = None
    if not isinstance(step, int):
        raise files.UsageError(
            f"{place} must be a JSON object with a step. Found: {line.strip()!r:.60}. "
            "Mend the line, or remove the file"
        )
    return scalars


def json_line(values):
    """A line of a .jsonl file."""
    return json.dumps(values, ensure_ascii=False) + "\n"
