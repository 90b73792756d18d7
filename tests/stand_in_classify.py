"""Classify and Regress of TF Serving, as its classifier.cc and regressor.cc do them.

The signature takes serialized `tf.Example`s as "inputs"; it gives "classes" and
"scores" (b, c), or "outputs" (b,) or (b, 1).
"""

import json

import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from tests.stand_in_json import Refused, decimal


def examples_of(request):
    """The examples of a request's `Input`, serialized, a list.

    Features of a context are those of each example.
    """
    kind = request.input.WhichOneof("kind")
    if kind is None:
        raise _invalid("Input is empty.")
    found = getattr(request.input, kind)
    context = b""
    if kind == "example_list_with_context":
        context = found.context.SerializeToString()
    # Merging messages is joining their bytes, which is what TF Serving does.
    examples = [context + one.SerializeToString() for one in found.examples]
    if not examples:
        raise _invalid("Input is empty.")
    return examples


def fill_request(body, request):
    """Fills a `ClassificationRequest` or `RegressionRequest` from JSON."""
    try:
        content = json.loads(body)
        examples, context = content["examples"], content.get("context")
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(
            f"key 'examples' is expected and was not found: {error}"
        ) from None
    request.model_spec.signature_name = content.get("signature_name", "")
    found = request.input.example_list
    if context is not None:
        found = request.input.example_list_with_context
        _fill_example(found.context, context)
    for example in examples:
        _fill_example(found.examples.add(), example)


def _fill_example(proto, example):
    if not isinstance(example, dict):
        raise _invalid(f"Example must be JSON object but got JSON {example!r}")
    for name, value in example.items():
        values = value if isinstance(value, list) else [value]
        feature = proto.features.feature[name]
        if all(isinstance(one, str) for one in values):
            feature.bytes_list.value.extend(one.encode("utf-8") for one in values)
        elif all(isinstance(one, int) for one in values):
            feature.int64_list.value.extend(values)
        elif all(isinstance(one, float) for one in values):
            feature.float_list.value.extend(values)
        else:
            raise _invalid(f"Unexpected element type in feature: {name}")


def check_signature(signature_defs, name, method):
    """Refuses a signature that is not one of "classify" or "regress"."""
    if name not in signature_defs:
        raise _invalid(f"No signature was found with the name: {name}")
    inputs, outputs = signature_defs[name].inputs, {*signature_defs[name].outputs}
    if len(inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if "inputs" not in inputs:
        raise _invalid(f"No {method} inputs found in SignatureDef")
    allowed = {"classify": {"classes", "scores"}, "regress": {"outputs"}}[method]
    if not outputs or not outputs <= allowed:
        raise _invalid(f"Expected outputs {sorted(allowed)}, found {sorted(outputs)}")


def classification(outputs, num_examples):
    """`ClassificationResult` of "classes" or "scores" or both, tensors (b, c)."""
    dtypes = {"classes": tf.string, "scores": tf.float32}
    for name, tensor in outputs.items():
        if tensor.shape.rank != 2 or tensor.shape[0] != num_examples:
            raise _invalid(
                "Expected Tensor shape: [batch_size num_classes] but got "
                f"{tensor.shape}"
            )
        if tensor.dtype != dtypes[name]:
            raise _invalid(f"Expected {name} Tensor of {dtypes[name].name}")
    if len({tuple(tensor.shape) for tensor in outputs.values()}) > 1:
        raise _invalid("Tensors class and score should match in dim_size(1).")
    result = classification_pb2.ClassificationResult()
    columns = {name: tensor.numpy() for name, tensor in outputs.items()}
    for row in range(num_examples):
        classes = result.classifications.add().classes
        for place in range(next(iter(columns.values())).shape[1]):
            one = classes.add()
            if "classes" in columns:
                one.label = columns["classes"][row, place].decode("utf-8")
            if "scores" in columns:
                one.score = columns["scores"][row, place]
    return result


def regression(outputs, num_examples):
    """`RegressionResult` of "outputs", a tensor (b,) or (b, 1)."""
    tensor = outputs["outputs"]
    if tuple(tensor.shape) not in ((num_examples,), (num_examples, 1)):
        raise _invalid(
            "Expected output Tensor shape to be either [batch_size] or "
            f"[batch_size, 1] but got {tensor.shape}"
        )
    if tensor.dtype != tf.float32:
        raise _invalid(f"Expected output Tensor of DT_FLOAT. Got: {tensor.dtype.name}")
    result = regression_pb2.RegressionResult()
    for value in tensor.numpy().ravel():
        result.regressions.add(value=value)
    return result


def result_json(result):
    """The JSON of a `ClassificationResult` or `RegressionResult`."""
    if isinstance(result, regression_pb2.RegressionResult):
        results = [decimal(one.value) for one in result.regressions]
    else:
        results = [
            "["
            + ", ".join(
                f"[{json.dumps(one.label)}, {decimal(one.score)}]"
                for one in found.classes
            )
            + "]"
            for found in result.classifications
        ]
    return f'{{\n    "results": [{", ".join(results)}]\n}}'


def _invalid(message):
    return Refused("INVALID_ARGUMENT", message)
