"""A stand-in for TF Serving: its protocols on real sockets, without its binary.

The exported SavedModel is real, run by TensorFlow in this process; so are the protos
and the sockets. Which requests are refused, with what status and words, and how JSON is
read and written, follow TF Serving's sources: servables/tensorflow/predict_util.cc and
get_model_metadata_impl.cc, util/json_tensor.cc (in `stand_in_json`) and
model_servers/http_server.cc and http_rest_api_util.cc. There is no batching of requests
by the server, and one model.
"""

import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import threading
import urllib.parse

import grpc
import tensorflow as tf
import tensorflow_text  # noqa: F401 (its ops tokenise in the graph)
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests import stand_in_classify
from tests.stand_in_json import Refused, predictions_of, tensors_of

_HTTP = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_REQUESTS = {
    "classify": classification_pb2.ClassificationRequest,
    "regress": regression_pb2.RegressionRequest,
}
_RESULTS = {
    "classify": stand_in_classify.classification,
    "regress": stand_in_classify.regression,
}
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+))?"


class StandInServer:
    """Serves the versions in a folder as a model, while it is entered.

    Args:
        name: str. The model's.
        directory: str. Folder of versions.
        max_request_bytes: int. Larger requests are refused, as gRPC does.

    Attributes:
        grpc_address, rest_address: str, HOST:PORT.
        failures: int. So many of the next calls fail with `failure`, a status.
        requests: list of a tuple (protocol, number of rows), of what was answered.
        is_free: `threading.Event`. Nothing but metadata is answered until it is set.
    """

    def __init__(self, name, directory, max_request_bytes=4 * 1024**2):
        self.name = name
        self.versions = {
            int(one): _Version(os.path.join(directory, one))
            for one in os.listdir(directory)
            if one.isdigit()
        }
        self.max_request_bytes = max_request_bytes
        self.failures, self.failure = 0, "UNAVAILABLE"
        self.requests = []
        self.is_free = threading.Event()
        self.is_free.set()
        self._lock = threading.Lock()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.grpc_address = stack.enter_context(_serve_grpc(self))
            self.rest_address = stack.enter_context(_serve_rest(self))
            # Of what is entered last is left first: nothing waits when both end.
            stack.callback(self.is_free.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def address(self, protocol):
        return {"grpc": self.grpc_address, "rest": self.rest_address}[protocol]

    def version(self, name, number=None):
        """The number of a version, and it.

        Raises:
            Refused: if it is not served, or calls fail at present.
        """
        with self._lock:
            if self.failures:
                self.failures -= 1
                raise Refused(self.failure, "The batch scheduling queue is full")
        number = max(self.versions) if number is None else number
        if name != self.name or number not in self.versions:
            which = f"Latest({name})"
            if number != max(self.versions):
                which = f"Specific({name}, {number})"
            raise Refused("NOT_FOUND", f"Servable not found for request: {which}")
        return number, self.versions[number]

    def predict(self, protocol, version, signature_name, tensors):
        """{name: tensor} of the outputs."""
        self.is_free.wait()
        outputs = version.predict(signature_name, tensors)
        rows = next(iter(outputs.values())).shape[0]
        self.requests.append((protocol, rows))
        return outputs

    def judge(self, protocol, version, request, method):
        """The result of a request to "classify" or to "regress"."""
        name = request.model_spec.signature_name or "serving_default"
        stand_in_classify.check_signature(version.signature_defs, name, method)
        examples = stand_in_classify.examples_of(request)
        outputs = self.predict(
            protocol, version, name, {"inputs": tf.constant(examples)}
        )
        return _RESULTS[method](outputs, len(examples))


class _Version:
    def __init__(self, path):
        saved_model = saved_model_pb2.SavedModel()
        with open(os.path.join(path, "saved_model.pb"), "rb") as file:
            saved_model.ParseFromString(file.read())
        self.signature_defs = saved_model.meta_graphs[0].signature_def
        self.loaded = tf.saved_model.load(path)

    def predict(self, signature_name, tensors):
        if signature_name not in self.loaded.signatures:
            raise Refused(
                "FAILED_PRECONDITION",
                f'Serving signature key "{signature_name}" not found.',
            )
        infos = self.signature_defs[signature_name].inputs
        sent, known = {*tensors}, {*infos}
        if sent != known:
            extra, missing = (",".join(sorted(s)) for s in (sent - known, known - sent))
            raise Refused(
                "INVALID_ARGUMENT",
                f"input size does not match signature: {len(sent)}!={len(known)}. "
                f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}.",
            )
        for name, tensor in tensors.items():
            _check_tensor(name, tensor, infos[name])
        try:
            return self.loaded.signatures[signature_name](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise Refused("INVALID_ARGUMENT", error.message) from error


def _check_tensor(name, tensor, info):
    dtype, shape = tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape)
    if tensor.dtype != dtype:
        raise Refused(
            "INVALID_ARGUMENT",
            f"{name}: expects arg to be {dtype.name} but {tensor.dtype.name} is "
            "provided",
        )
    if not shape.is_compatible_with(tensor.shape):
        raise Refused(
            "INVALID_ARGUMENT",
            f"{name}: a value of shape {tensor.shape} for a placeholder of shape "
            f"{shape}",
        )


@contextlib.contextmanager
def _serve_grpc(serving):
    limit = ("grpc.max_receive_message_length", serving.max_request_bytes)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[limit])
        add = prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server
        add(_PredictionService(serving), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, serving):
        self._serving = serving

    def GetModelMetadata(self, request, context):
        try:
            version = self._version(request.model_spec)
        except Refused as refused:
            context.abort(grpc.StatusCode[refused.status], str(refused))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.CopyFrom(_spec(self._serving.name, version[0]))
        response.metadata["signature_def"].Pack(_signature_def_map(version[1]))
        return response

    def Predict(self, request, context):
        signature_name = request.model_spec.signature_name or "serving_default"
        try:
            number, version = self._version(request.model_spec)
            tensors = {
                name: tf.constant(tf.make_ndarray(proto), tf.as_dtype(proto.dtype))
                for name, proto in request.inputs.items()
            }
            outputs = self._serving.predict("grpc", version, signature_name, tensors)
        except Refused as refused:
            context.abort(grpc.StatusCode[refused.status], str(refused))
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(_spec(self._serving.name, number))
        for name, tensor in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        return response

    def Classify(self, request, context):
        response = classification_pb2.ClassificationResponse()
        return self._judge(request, response, context, "classify")

    def Regress(self, request, context):
        response = regression_pb2.RegressionResponse()
        return self._judge(request, response, context, "regress")

    def _judge(self, request, response, context, method):
        try:
            _, version = self._version(request.model_spec)
            result = self._serving.judge("grpc", version, request, method)
        except Refused as refused:
            context.abort(grpc.StatusCode[refused.status], str(refused))
        response.result.CopyFrom(result)
        return response

    def _version(self, spec):
        number = spec.version.value if spec.HasField("version") else None
        return self._serving.version(spec.name, number)


def _spec(name, number):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = name
    spec.version.value = number
    return spec


def _signature_def_map(version):
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, signature_def in version.signature_defs.items():
        found.signature_def[name].CopyFrom(signature_def)
    return found


@contextlib.contextmanager
def _serve_rest(serving):
    class Handler(_Handler):
        pass

    Handler.serving = serving
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(rf"{_MODEL}(/metadata)?", self._describe)

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if length > self.serving.max_request_bytes:
            # As the proxies do that commonly stand before TF Serving.
            self._send(413, '{"error": "Request Entity Too Large"}')
        else:
            self._answer(
                rf"{_MODEL}:(predict|classify|regress)",
                lambda _, version, method: self._compute(body, version, method),
            )

    def _answer(self, pattern, answer):
        found = re.fullmatch(pattern, self.path)
        try:
            if not found:
                raise Refused(
                    "INVALID_ARGUMENT",
                    f"Malformed request: {self.command} {self.path}",
                )
            name, number, *rest = found.groups()
            number = None if number is None else int(number)
            version = self.serving.version(urllib.parse.unquote(name), number)
            self._send(200, answer(*version, *rest))
        except Refused as refused:
            self._send(_HTTP[refused.status], json.dumps({"error": str(refused)}))

    def _describe(self, number, version, is_metadata):
        if not is_metadata:
            status = get_model_status_pb2.GetModelStatusResponse()
            status.model_version_status.add(version=number, state="AVAILABLE")
            return json_format.MessageToJson(status, preserving_proto_field_name=True)
        spec, found = (
            json_format.MessageToDict(message, preserving_proto_field_name=True)
            for message in (
                _spec(self.serving.name, number),
                _signature_def_map(version),
            )
        )
        return json.dumps({"model_spec": spec, "metadata": {"signature_def": found}})

    def _compute(self, body, version, method):
        if method != "predict":
            request = _REQUESTS[method]()
            stand_in_classify.fill_request(body, request)
            result = self.serving.judge("rest", version, request, method)
            return stand_in_classify.result_json(result)
        signature_name, tensors, is_rows = tensors_of(body, version.signature_defs)
        outputs = self.serving.predict("rest", version, signature_name, tensors)
        return predictions_of(outputs, is_rows)

    def _send(self, code, text):
        body = text.encode("utf-8")
        # A client that has run out of time is gone.
        with contextlib.suppress(ConnectionError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass
