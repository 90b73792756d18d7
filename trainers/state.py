"""Training state on disk: what a run needs to go on as if it had never stopped."""

import tensorflow as tf

from deberta_tf.files import UsageError
from trainers import devices


class TrainingDiverged(ValueError):
    """A loss or a weight that is no number any more."""


class TrainingState:
    """Weights, optimizer, random state and step of a run, in `directory`.

    The states of the seed generators are part of it: a resumed run draws the
    dropout that the uninterrupted one draws.

    Args:
        task: compiled model.
        directory: str. Made at the first save.
        keep: int. Checkpoints kept.
    """

    def __init__(self, task, directory, keep=2):
        task.build_optimizers()
        # Means since the last progress line; they start anew.
        passing = {id(variable) for variable in task.metrics_variables}
        self._model = [v.value for v in task.variables if id(v) not in passing]
        self._step = tf.Variable(0, dtype=tf.int64)
        # Variables, not the model itself: TensorFlow would leave out layers that
        # Keras 3 keeps in lists, and all seed generators.
        self._checkpoint = tf.train.Checkpoint(
            step=self._step,
            model=self._model,
            optimizer=[v.value for one in task.optimizers for v in one.variables],
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, directory, max_to_keep=keep, checkpoint_name="step"
        )

    def restore(self):
        """Loads the newest checkpoint; returns its step, 0 where there is none.

        Raises:
            UsageError: if the checkpoint is not one of this model.
        """
        newest = self._manager.latest_checkpoint
        if newest is None:
            return 0
        try:
            self._checkpoint.restore(newest).assert_consumed()
        except (AssertionError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"{newest} does not fit the model: {reason}. Take another model_dir"
            ) from None
        return self.step

    @property
    def step(self):
        """Steps done when the state was saved or restored last."""
        return int(self._step)

    def require_finite(self, step):
        """Raises TrainingDiverged if a weight is no finite number."""
        if not all(map(_is_finite, self._model)):
            raise TrainingDiverged(
                f"a weight is not finite after step {step}. {self.last_good()}"
            )

    def save(self, step):
        """Saves the state after `step` steps.

        Raises:
            TrainingDiverged: if a weight is no finite number; nothing is saved.
        """
        self.require_finite(step)
        self._step.assign(step)
        # The weights are the same in all processes; all read what the chief wrote.
        if devices.is_chief():
            self._manager.save(checkpoint_number=step)

    def last_good(self):
        """A sentence on what remains when a run has diverged."""
        newest = self._manager.latest_checkpoint or "none was saved yet"
        return (
            f"Last good checkpoint: {newest}. A lower learning_rate, in another "
            "model_dir, may do"
        )


def _is_finite(variable):
    if not variable.dtype.is_floating:
        return True
    return bool(tf.reduce_all(tf.math.is_finite(variable)))
