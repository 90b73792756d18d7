"""The weights of what is served: float32, bfloat16, or int8 with scales."""

import tempfile

import keras

WEIGHTS = ("float32", "bfloat16", "int8")


def with_weights(task, weights):
    """A task for export: a copy in the dtype wanted, or itself where it has that.

    Args:
        task: `DebertaTask`.
        weights: str, one of `WEIGHTS`; None: those of the task. For "int8" it is one in
            float32, for `quantize`.
    """
    dtype = "bfloat16" if weights == "bfloat16" else "float32"
    # To quantise changes a model.
    is_itself = weights == "float32" and task.backbone.dtype_policy.name == dtype
    if weights is None or is_itself:
        return task
    with tempfile.TemporaryDirectory() as folder:
        preset = f"{folder}/preset"
        task.save_to_preset(preset)
        return type(task).from_preset(preset, dtype=dtype)


def quantize(task):
    """Makes int8 of the matrices and tables of a task, each with float32 scales.

    The largest of a channel, a column of a matrix or a row of a table, is 127. What
    they are multiplied with stays float32. Convolutions stay as they are.
    """
    config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    kinds = (keras.layers.Dense, keras.layers.Embedding)
    task.quantize(config=config, filters=lambda layer: isinstance(layer, kinds))
