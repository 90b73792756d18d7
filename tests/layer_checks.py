"""The contract that every layer keeps, checked in one call."""

import json
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

# Largest difference to float32, relative to the largest value: a few roundings of
# the compute dtype (epsilon 2^-8 and 2^-11) on top of each other.
POLICY_TOLERANCES = {"float32": 1e-6, "mixed_bfloat16": 0.06, "mixed_float16": 0.01}
# XLA fuses and reorders float32 sums.
COMPILED_TOLERANCE = 2e-5


def run_layer_checks(
    layer_class,
    init_kwargs,
    call_inputs,
    expected_output_shape,
    expected_num_weights,
    unreached_weights=(),
):
    """Checks what Keras, presets, mixed precision and XLA expect of a layer.

    Args:
        layer_class: keras.layers.Layer subclass, registered as serializable.
        init_kwargs: dict. Arguments of its constructor. No check draws dropout.
        call_inputs: dict from the argument names of `call` to arrays, nests of
            arrays, or None.
        expected_output_shape: tuple, or a list of tuples where the output is a
            list or tuple of tensors.
        expected_num_weights: int. Weights of the built layer.
        unreached_weights: ends of the paths of those trainable weights, as
            "key/bias", to which these inputs send no gradient.
    """
    call_inputs = keras.tree.map_structure(_to_tensor, call_inputs)
    layer = layer_class(**init_kwargs)
    output = layer(**call_inputs)

    shapes = [tuple(tensor.shape) for tensor in _flat(output)]
    several = isinstance(expected_output_shape, list)
    assert shapes == (expected_output_shape if several else [expected_output_shape])
    assert len(layer.weights) == expected_num_weights
    check_spec(layer_class(**init_kwargs), call_inputs, output)
    check_config(layer, call_inputs, output)
    check_keras_file(layer, call_inputs, output)
    for policy in POLICY_TOLERANCES:
        check_policy(layer, policy, call_inputs, output)
    check_gradients(layer, call_inputs, unreached_weights)
    check_compiled(layer, call_inputs, output)


def check_spec(unbuilt_layer, call_inputs, output):
    """A symbolic call tells the shapes and dtypes of the real one."""
    spec = unbuilt_layer(**keras.tree.map_structure(_to_symbol, call_inputs))
    for symbol, tensor in zip(_flat(spec), _flat(output), strict=True):
        assert tuple(symbol.shape) == tuple(tensor.shape)
        assert symbol.dtype == tensor.dtype.name


def check_config(layer, call_inputs, output):
    """The config survives JSON and rebuilds a layer that computes the same."""
    config = keras.saving.serialize_keras_object(layer)
    revived = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert revived.get_config() == layer.get_config()
    revived(**call_inputs)
    revived.set_weights(layer.get_weights())
    assert_close(revived(**call_inputs), output, POLICY_TOLERANCES["float32"])


def check_keras_file(layer, call_inputs, output):
    """A model around the layer comes back whole from its `.keras` file."""
    symbols = keras.tree.map_structure(_to_symbol, call_inputs)
    model = keras.Model(_flat(symbols), layer(**symbols))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)
    assert_close(loaded(_flat(call_inputs)), output, POLICY_TOLERANCES["float32"])


def check_policy(layer, policy, call_inputs, output):
    """Variables stay float32, results come in the compute dtype, close to float32."""
    config = {**layer.get_config(), "dtype": policy}
    cast = type(layer).from_config(config)
    cast(**call_inputs)
    cast.set_weights(layer.get_weights())
    result = cast(**call_inputs)
    assert {weight.dtype for weight in cast.weights} <= {"float32"}
    assert {tensor.dtype.name for tensor in _flat(result)} == {cast.compute_dtype}
    assert_close(result, output, POLICY_TOLERANCES[policy])


def check_gradients(layer, call_inputs, unreached_weights):
    """Gradient reaches every trainable weight but the ones named."""
    with tf.GradientTape() as tape:
        # Random factors: the plain sum of a layer norm's result is constant.
        loss = sum(
            tf.reduce_sum(tensor * tf.random.normal(tensor.shape))
            for tensor in _flat(layer(**call_inputs))
        )
    variables = layer.trainable_weights
    gradients = tape.gradient(loss, [weight.value for weight in variables])
    for weight, gradient in zip(variables, gradients, strict=True):
        reached = gradient is not None and np.any(_to_array(gradient))
        assert reached != weight.path.endswith(tuple(unreached_weights)), weight.path


def check_compiled(layer, call_inputs, output):
    """XLA compiles the layer, and computes what eager execution computes."""
    compiled = tf.function(lambda inputs: layer(**inputs), jit_compile=True)
    assert_close(compiled(call_inputs), output, COMPILED_TOLERANCE)


def assert_close(result, expected, tolerance):
    """Asserts max |result - expected| <= tolerance * max |expected|, all finite."""
    for tensor, reference in zip(_flat(result), _flat(expected), strict=True):
        tensor, reference = _to_array(tensor), _to_array(reference)
        assert np.all(np.isfinite(tensor))
        scale = np.max(np.abs(reference), initial=1e-6)
        assert np.max(np.abs(tensor - reference), initial=0.0) <= tolerance * scale


def _flat(nest):
    return [leaf for leaf in keras.tree.flatten(nest) if leaf is not None]


def _to_tensor(leaf):
    return None if leaf is None else tf.convert_to_tensor(leaf)


def _to_symbol(leaf):
    if leaf is None:
        return None
    return keras.Input(batch_shape=tuple(leaf.shape), dtype=leaf.dtype.name)


def _to_array(tensor):
    return tf.cast(tf.convert_to_tensor(tensor), "float64").numpy()
