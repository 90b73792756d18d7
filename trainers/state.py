"""Training state on disk: what a run needs to go on as if it had never stopped."""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from deberta_tf.files import UsageError
from trainers import devices

FORMAT = "deberta_tf.training_state"
_NAME = re.compile(r"step-(\d{9})\.safetensors")


class TrainingDiverged(ValueError):
    """A loss or a weight that is no number any more."""


class SavingFailed(ValueError):
    """A checkpoint that could not be written."""


class TrainingState:
    """Weights, optimizers, random state and step of a run, in `directory`.

    A checkpoint is one file, `step-000000500.safetensors`: all variables, and a SHA-256
    over their names, shapes and bytes. It is copied from the devices first and written
    by a thread, under a temporary name; it takes its own name when it has been read
    back, and only then are older ones deleted. The states of the seed generators are
    part of it: a resumed run draws the dropout that the uninterrupted one draws.

    Of several processes the chief writes, and all read: the variables are the same.

    Args:
        task: compiled model.
        directory: str. Made at the first save.
        keep: int. Checkpoints kept.
    """

    def __init__(self, task, directory, keep=2):
        task.build_optimizers()
        # Means since the last progress line; they start anew.
        passing = {id(variable) for variable in task.metrics_variables}
        model = [v for v in task.variables if id(v) not in passing]
        optimizers = [v for one in task.optimizers for v in one.variables]
        self._model = model
        self._variables = {
            **{f"model.{i}": variable for i, variable in enumerate(model)},
            **{f"optimizer.{i}": variable for i, variable in enumerate(optimizers)},
        }
        self.directory = directory
        self.keep = keep
        self.step = 0
        self._writer = None
        self._failure = None

    def restore(self):
        """Loads the newest whole checkpoint; returns its step, 0 where there is none.

        One that is damaged is passed over, with a line that says so.

        Raises:
            UsageError: if the checkpoint is not one of this model, or none is whole.
        """
        paths = checkpoints(self.directory)
        damages = []
        for path in paths:
            try:
                step, arrays = read_checkpoint(path)
            except ValueError as error:
                damages.append(str(error))
                print(f"damaged: {error}", file=sys.stderr, flush=True)
                continue
            self._assign(path, arrays)
            self.step = step
            return step
        if damages:
            raise UsageError(
                f"no checkpoint in {self.directory} is whole: {'; '.join(damages)}. "
                "Take another model_dir"
            )
        return 0

    def require_finite(self, step):
        """Raises TrainingDiverged if a weight is no finite number."""
        if not all(_is_finite(variable.value) for variable in self._model):
            raise TrainingDiverged(
                f"a weight is not finite after step {step}. {self.last_good()}"
            )

    def save(self, step):
        """Saves the state after `step` steps; `wait` until it is on the disk.

        Raises:
            TrainingDiverged: if a weight is no finite number; nothing is saved.
            SavingFailed: if the save before this one failed.
        """
        self.require_finite(step)
        self.wait()
        self.step = step
        if not devices.is_chief():
            return
        arrays = {name: np.array(v.numpy()) for name, v in self._variables.items()}
        self._writer = threading.Thread(target=self._write, args=(step, arrays))
        self._writer.start()

    def wait(self):
        """Returns when the last save is on the disk.

        Raises:
            SavingFailed: if it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise SavingFailed(failure)

    def last_good(self):
        """A sentence on what remains when a run has diverged."""
        with contextlib.suppress(SavingFailed):
            self.wait()
        newest = next(iter(checkpoints(self.directory)), "none was saved yet")
        return (
            f"Last good checkpoint: {newest}. A lower learning_rate, in another "
            "model_dir, may do"
        )

    def out_of_space(self, error):
        """The SavingFailed of a preset or scalar that had no space."""
        with contextlib.suppress(SavingFailed):
            self.wait()
        reason = str(error).partition("\n")[0]
        return SavingFailed(f"the disk is full: {reason}. {self._goes_on()}")

    def _write(self, step, arrays):
        try:
            write_checkpoint(self.directory, step, arrays)
            # Later ones are damaged: else the run had gone on from them. They must not
            # take the place of whole ones.
            paths = checkpoints(self.directory)
            newest = paths.index(checkpoint_path(self.directory, step))
            for path in paths[:newest] + paths[newest + self.keep :]:
                os.unlink(path)
        except Exception as error:
            # Also what is no OSError: the thread's own report would go unseen.
            self._failure = (
                f"step {step} could not be saved to {self.directory}: {error}. "
                f"{self._goes_on()}"
            )

    def _goes_on(self):
        newest = next(iter(checkpoints(self.directory)), "none")
        return (
            f"The last good checkpoint is {newest}; the same command goes on from there"
        )

    def _assign(self, path, arrays):
        expected = {name: tuple(v.shape) for name, v in self._variables.items()}
        found = {name: array.shape for name, array in arrays.items()}
        if expected != found:
            raise UsageError(
                f"{path} does not fit the model: {self._difference(found)}. Take "
                "another model_dir"
            )
        for name, variable in self._variables.items():
            variable.assign(arrays[name])

    def _difference(self, found):
        for name, variable in self._variables.items():
            shape = tuple(variable.shape)
            if found.get(name, shape) != shape:
                return f"{variable.path} has shape {found[name]}, not {shape}"
        return f"it has {len(found)} variables, not {len(self._variables)}"


def checkpoints(directory):
    """Paths of the checkpoints in a folder, the newest first."""
    if not os.path.isdir(directory):
        return []
    names = sorted(filter(_NAME.fullmatch, os.listdir(directory)), reverse=True)
    return [os.path.join(directory, name) for name in names]


def checkpoint_path(directory, step):
    """Where the checkpoint of a step is, or will be."""
    return os.path.join(directory, f"step-{step:09d}.safetensors")


def write_checkpoint(directory, step, arrays):
    """Writes one checkpoint; it has its name when it was read back, not before.

    Args:
        directory: str.
        step: int.
        arrays: dict of NumPy arrays.

    Raises:
        OSError: if it could not be written; ValueError: if it did not read back.
    """
    os.makedirs(directory, exist_ok=True)
    remove_leftovers(directory)
    path = checkpoint_path(directory, step)
    temporary = f"{path}.new"
    metadata = {"format": FORMAT, "step": str(step), "sha256": digest(step, arrays)}
    try:
        # Not save_file: an error of its mapped writes would kill the process.
        with open(temporary, "wb") as file:
            file.write(safetensors.numpy.save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        read_checkpoint(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path):
    """(step, arrays) of a checkpoint.

    Raises:
        ValueError: if the file is cut short, or a bit of it is another.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a whole file: {error}") from None
    step = metadata.get("step", "")
    if metadata.get("format") != FORMAT or not step.isdecimal():
        raise ValueError(f"{path} is no checkpoint. Found: {json.dumps(metadata)}")
    found = digest(int(step), arrays)
    if found != metadata.get("sha256"):
        raise ValueError(
            f"{path} has SHA-256 {found}; it was written with {metadata.get('sha256')}"
        )
    return int(step), arrays


def remove_leftovers(directory):
    """Removes what a run that was killed while it saved has left half-written."""
    for name in os.listdir(directory):
        if name.endswith(".new") and _NAME.fullmatch(name.removesuffix(".new")):
            os.unlink(os.path.join(directory, name))


def digest(step, arrays):
    """SHA-256 over a step and arrays, their names, shapes and dtypes: hex."""
    summary = hashlib.sha256(f"{step}".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        summary.update(f"{name} {array.shape} {array.dtype.name}".encode())
        summary.update(array.reshape(-1).view(np.uint8))
    return summary.hexdigest()


def _is_finite(variable):
    if not variable.dtype.is_floating:
        return True
    return bool(tf.reduce_all(tf.math.is_finite(variable)))
