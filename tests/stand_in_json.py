"""JSON of TF Serving's REST API, as its util/json_tensor.cc reads and writes it."""

import json

import numpy as np
import tensorflow as tf


class Refused(Exception):
    """A request is answered by an error: a status of gRPC and a message."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def tensors_of(body, signature_defs):
    """What a request of Predict asks.

    Args:
        body: bytes.
        signature_defs: {name: `SignatureDef`}.

    Returns:
        The signature's name, {name: tensor}, and whether it is in the row format.

    Raises:
        Refused: if it can't be read.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise _invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise _invalid(f"JSON Value: {request} Is not object")
    name = request.get("signature_name", "serving_default")
    if name not in signature_defs:
        raise _invalid(f'Serving signature name: "{name}" not found in signature def')
    infos = signature_defs[name].inputs
    if "instances" in request and "inputs" in request:
        raise _invalid(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys"
        )
    if "instances" in request:
        return name, _tensors_of_rows(request["instances"], infos), True
    if "inputs" in request:
        return name, _tensors_of_columns(request["inputs"], infos), False
    raise _invalid("Missing 'inputs' or 'instances' key")


def _tensors_of_rows(rows, infos):
    if not isinstance(rows, list):
        raise _invalid("Expecting 'instances' to be an list/array")
    if not rows:
        raise _invalid("No values in 'instances' array")
    if not isinstance(rows[0], dict):
        if len(infos) > 1:
            raise _invalid(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        rows = [dict.fromkeys(infos, row) for row in rows]
    columns = {name: [] for name in infos}
    for index, row in enumerate(rows):
        which = f"Failed to process element: {index}"
        if not isinstance(row, dict):
            raise _invalid(f"Expecting object but got list at item {index}")
        for name, value in row.items():
            try:
                if name not in infos:
                    raise _invalid(f"JSON object: does not have named input: {name}")
                columns[name].append(_array(value, infos[name]))
                first, last = columns[name][0].shape, columns[name][-1].shape
                if first != last:
                    raise _invalid(f"Expecting shape {first} but got: {last}")
            except Refused as refused:
                raise _invalid(
                    f"{which} key: {name} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: {refused}"
                ) from None
        if {*row} != {*infos}:
            raise _invalid(
                f"{which} of 'instances' list. JSON object: {json.dumps(row):.256} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    return {
        name: tf.constant(np.stack(column), tf.as_dtype(infos[name].dtype))
        for name, column in columns.items()
    }


def _tensors_of_columns(columns, infos):
    if not isinstance(columns, dict):
        if len(infos) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        columns = dict.fromkeys(infos, columns)
    tensors = {}
    for name, info in infos.items():
        if name not in columns:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        tensors[name] = tf.constant(
            _array(columns[name], info), tf.as_dtype(info.dtype)
        )
    return tensors


def _array(value, info):
    dtype = tf.as_dtype(info.dtype)
    kind = str if dtype == tf.string else int if dtype.is_integer else (int, float)
    array = np.array(value, dtype=object)
    for one in array.flat:
        if isinstance(one, bool) or not isinstance(one, kind):
            raise _invalid(
                f"JSON Value: {json.dumps(one):.256} is not of expected type: "
                f"{dtype.name}"
            )
    return array if dtype == tf.string else array.astype(dtype.as_numpy_dtype)


def predictions_of(outputs, is_rows):
    """The JSON of an answer: "predictions" of rows, or "outputs" of columns.

    An output that is alone has no name.
    """
    columns = {name: _texts(tensor.numpy()) for name, tensor in outputs.items()}
    if is_rows:
        rows = [
            _named(dict(zip(columns, row, strict=True)))
            for row in zip(*columns.values(), strict=True)
        ]
        return f'{{\n    "predictions": {_list(rows)}\n}}'
    return f'{{\n    "outputs": {_named({k: _list(v) for k, v in columns.items()})}\n}}'


def _named(values):
    if len(values) == 1:
        return next(iter(values.values()))
    members = ",\n".join(f"{json.dumps(name)}: {one}" for name, one in values.items())
    return f"{{\n{members}\n}}"


def _texts(array):
    """Of each row of an array its JSON."""
    if array.ndim > 1:
        return [_list(_texts(row)) for row in array]
    return [_text(value) for value in array]


def _list(texts):
    return f"[{', '.join(texts)}]"


def _text(value):
    if isinstance(value, bytes):
        return json.dumps(value.decode("utf-8"), ensure_ascii=False)
    return decimal(value) if isinstance(value, np.floating) else str(value)


def decimal(value):
    """JSON of a float32: six digits if they mean the same number, else nine."""
    text = f"{value:g}"
    if np.float32(text) != np.float32(value):
        text = f"{value:.9g}"
    return text if "." in text or "e" in text else f"{text}.0"


def _invalid(message):
    return Refused("INVALID_ARGUMENT", message)
