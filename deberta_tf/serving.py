"""Export of tasks to folders that TF Serving answers from."""

import os

import keras
import tensorflow as tf

from deberta_tf import files


class ServingExport:
    """Mixin of tasks with a preprocessor: a SavedModel that answers raw inputs."""

    def signatures(self):
        """What is served of raw inputs: {name: (callable, list of `tf.TensorSpec`)}.

        The first is "serving_default". The callables give dicts of tensors.
        """
        return {}

    def export_for_serving(self, directory, version=1, complete=None):
        """Writes `directory/version`, a SavedModel that answers raw inputs.

        It has the task's `signatures`, and `token_ids`: from int32 inputs of the model
        to `logits` float32. Rows are as long as the longest of the batch.

        Args:
            directory: str. Folder of the model's versions, as TF Serving reads it.
            version: int.
            complete: callable from the version's folder, before it has its name: what
                it writes there is in it when TF Serving sees it. None: nothing.

        Returns:
            str, the folder written.

        Raises:
            ValueError: if that version exists, or the task has no preprocessor or
                nothing to serve.
        """
        path = os.path.join(directory, str(version))
        if version < 0:
            raise ValueError(f"version must be at least 0. Received: {version}")
        if not self.backbone.clamp_distances and self.backbone.bucket_size:
            raise ValueError(
                "clamp_distances=False can't be served: rows are of dynamic length"
            )
        if os.path.exists(path):
            raise ValueError(
                f"{path!r} exists: a served version is never overwritten. Pass "
                "another version"
            )
        self.require_preprocessor("serve raw inputs")
        signatures = self.signatures()
        if not signatures:
            raise ValueError(f"{type(self).__name__} has nothing that can be served")
        with files.atomic_directory(path) as temporary:
            write_saved_model(self, signatures, temporary)
            if complete is not None:
                complete(temporary)
        return path


def write_saved_model(task, signatures, directory):
    """Writes a SavedModel of a task with its signatures, and that of its ids."""

    def logits_of(inputs):
        return {"logits": task(inputs, training=False)}

    ids = {
        name: tf.TensorSpec([None] * len(one.shape), tf.int32, name=name)
        for name, one in task.input.items()
    }
    archive = keras.export.ExportArchive()
    archive.track(task)
    for name, (function, specs) in signatures.items():
        archive.add_endpoint(name, function, specs)
    archive.add_endpoint("token_ids", logits_of, [ids])
    archive.write_out(directory, verbose=False)
