"""Export of tasks to folders that TF Serving answers from."""

import os

import keras
import tensorflow as tf

from deberta_tf import files, served_weights

# What TF Serving wants of signatures for its Classify and Regress calls, by how their
# names begin; all others are for Predict.
_METHODS = {
    "classify": tf.saved_model.CLASSIFY_METHOD_NAME,
    "regress": tf.saved_model.REGRESS_METHOD_NAME,
}


class ServingExport:
    """Mixin of tasks with a preprocessor: a SavedModel that answers raw inputs."""

    def signatures(self):
        """What is served of raw inputs: {name: (callable, list of `tf.TensorSpec`)}.

        The first is "serving_default". The callables give dicts of tensors. Those
        whose names begin with "classify" or "regress" are for TF Serving's calls of
        these names, and take `inputs`, string (b,), serialized `tf.train.Example`s.
        """
        return {}

    def export_for_serving(self, directory, version=1, weights=None, complete=None):
        """Writes `directory/version`, a SavedModel that answers raw inputs.

        It has the task's `signatures`, and `token_ids`: from int32 inputs of the model
        to `logits` float32. Rows are as long as the longest of the batch, in steps of
        `packing.LENGTH_STEP`. The tables of positions are projected here, once.

        Args:
            directory: str. Folder of the model's versions, as TF Serving reads it.
            version: int.
            weights: str. "float32"; "bfloat16", of half the size, computed with in
                bfloat16 where training under that policy would; "int8", of a quarter,
                matrices and tables alone, one scale a channel, computed with in
                float32. None: as they are.
            complete: callable, given the unfinished version's folder, for what
                belongs into it before TF Serving can see it.

        Returns:
            str, the folder written.

        Raises:
            ValueError: if that version exists, `weights` are none of these, or the task
                has no preprocessor or nothing to serve.
        """
        path = os.path.join(directory, str(version))
        self._check_export(path, version, weights)
        served = served_weights.with_weights(self, weights)
        with files.atomic_directory(path) as temporary:
            with served.backbone.encoder.folded_positions() as tables:
                if weights == "int8":
                    served_weights.quantize(served)
                write_saved_model(served, served.signatures(), temporary, tables)
            set_methods(temporary, served.signatures())
            if complete is not None:
                complete(temporary)
        return path

    def _check_export(self, path, version, weights):
        if version < 0:
            raise ValueError(f"version must be at least 0. Received: {version}")
        if weights not in (None, *served_weights.WEIGHTS):
            raise ValueError(
                f"weights must be one of {', '.join(served_weights.WEIGHTS)}, or None. "
                f"Received: {weights!r}"
            )
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
        if not self.signatures():
            raise ValueError(f"{type(self).__name__} has nothing that can be served")


def write_saved_model(task, signatures, directory, tables):
    """Writes a SavedModel of a task with its signatures, and that of its ids.

    Args:
        task: `DebertaTask`.
        signatures: as `ServingExport.signatures` gives them.
        directory: str.
        tables: list of variables that the task computes with and does not hold.
    """

    def logits_of(inputs):
        return {"logits": task(inputs, training=False)}

    ids = {
        name: tf.TensorSpec([None] * len(one.shape), tf.int32, name=name)
        for name, one in task.input.items()
    }
    archive = keras.export.ExportArchive()
    archive.track(task)
    if tables:
        archive.add_variable_collection("position_tables", tables)
    for name, (function, specs) in signatures.items():
        archive.add_endpoint(name, function, specs)
    archive.add_endpoint("token_ids", logits_of, [ids])
    archive.write_out(directory, verbose=False)


def set_methods(directory, names):
    """Marks the signatures of a SavedModel that are for Classify and Regress."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    methods = {name: _METHODS.get(name.partition("_")[0]) for name in names}
    for name, method in methods.items():
        if method is not None:
            updater.replace_method_name(name, method, tags=["serve"])
    if any(methods.values()):
        updater.save()


def example_feature(examples, *names):
    """String features of serialized `tf.train.Example`s, one string of each name.

    Args:
        examples: string (b,).
        names: str.

    Returns:
        list of string (b,).
    """
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    parsed = tf.io.parse_example(examples, features)
    return [parsed[name] for name in names]
