"""Requests to TF Serving, as its clients send them and its warm-up replays them."""

import os

import tensorflow as tf

try:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
except ImportError as error:
    raise ImportError(
        "TF Serving's protos are needed: "
        "pip install -r requirements-serving.txt -c constraints.txt"
    ) from error

# Where TF Serving looks for warm-up records, inside a version's folder.
WARM_UP_PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")


def predict_request(model, inputs, signature="serving_default"):
    """A `PredictRequest`.

    Args:
        model: str, the name that the model is served by.
        inputs: dict of arrays, tensors or nested lists.
        signature: str.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def write_requests(path, requests):
    """Writes `PredictRequest`s as the records that warm-up replays (PredictionLog)."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())


def read_requests(path):
    """The `PredictRequest`s of a file of `write_requests`, a list."""
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    parse = prediction_log_pb2.PredictionLog.FromString
    return [parse(record).predict_log.request for record in records]
