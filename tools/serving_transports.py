"""TF Serving's two ways to be asked, gRPC and REST: metadata, requests, errors.

Both classes have the same methods. Every error is a `UsageError` of one line: what is
wrong with a server, a name or a flag is for the caller of a command to mend.
"""

import dataclasses
import json
import random
import time
import urllib.parse

import grpc
import numpy as np
import requests
import tensorflow as tf
import urllib3
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

from deberta_tf import files
from tools.serving_requests import predict_request

# Seconds before the first retry, doubled for each more, up to the longest.
BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 10.0

_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
# Without 504, which is TF Serving's for a request that ran out of time.
_RETRIED_HTTP = (429, 502, 503)
# In gRPC's words for a message over a limit, also RESOURCE_EXHAUSTED.
_TOO_LARGE = "larger than max"


@dataclasses.dataclass(frozen=True)
class Target:
    """A served model, and how patiently it is asked."""

    address: str
    """HOST:PORT."""
    model: str
    version: int | None = None
    """None: the latest."""
    timeout_s: float = 10.0
    """Of one try."""
    retries: int = 5
    """Tries after the first, if the server can't be reached or has too much to do."""

    def timed_out(self, message=None):
        """Of the time that the client has; with a message, of the server's own."""
        time_s = f"{self.timeout_s:g} s (--timeout_s)"
        if message is not None:
            time_s = f"its own time: {_in_line(message)}"
        return files.UsageError(f"{self.address} gave no answer within {time_s}")

    def unavailable(self, protocol, tries, message):
        return files.UsageError(
            f"{self.address} is unavailable by {protocol}, tries: {tries}: "
            f"{_in_line(message)}"
        )

    def not_found(self, message):
        version = "" if self.version is None else f" of version {self.version}"
        return files.UsageError(
            f"{self.address} serves no model {self.model!r}{version}: "
            f"{_in_line(message)}"
        )

    def too_large(self, message):
        return files.UsageError(
            f"{self.address} takes no request of this size (see --max_request_bytes): "
            f"{_in_line(message)}"
        )

    def refused(self, status, message):
        return files.UsageError(
            f"{self.address} answered {status}: {_in_line(message)}"
        )

    def unknown_answer(self, error):
        return files.UsageError(
            f"{self.address} does not answer as TF Serving does: {_in_line(error)}"
        )


class GrpcServer:
    """Predict and GetModelMetadata of TF Serving's PredictionService."""

    def __init__(self, target):
        self.target = target
        # After a failed connection gRPC does not try again for longer and longer, and
        # retries in that time would be in vain. Answers may be of any size.
        options = [
            ("grpc.initial_reconnect_backoff_ms", int(BACKOFF_S * 500)),
            ("grpc.max_reconnect_backoff_ms", int(BACKOFF_S * 500)),
            ("grpc.max_receive_message_length", -1),
        ]
        self._channel = grpc.insecure_channel(target.address, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self):
        self._channel.close()

    def signature_defs(self):
        """{name: `SignatureDef`} of the model."""
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        self._name(request.model_spec)
        request.metadata_field.append("signature_def")
        response = self._call(self._stub.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        return found.signature_def

    def request(self, inputs, signature):
        """A request of inputs, {name: array}, and its size in bytes."""
        request = predict_request(self.target.model, inputs, signature.name)
        self._name(request.model_spec)
        return request, request.ByteSize()

    def predict(self, request, signature):
        """The outputs, {name: array}, strings as objects, of a request."""
        outputs = self._call(self._stub.Predict, request).outputs
        return {name: _to_array(proto) for name, proto in outputs.items()}

    def _name(self, spec):
        spec.name = self.target.model
        if self.target.version is not None:
            spec.version.value = self.target.version

    def _call(self, method, request):
        # gRPC's own retries stop at 5 tries, have one deadline for all of them, and
        # silently leave out requests above 256 KiB.
        for attempt in range(self.target.retries + 1):
            try:
                return method(request, timeout=self.target.timeout_s)
            except grpc.RpcError as error:
                if attempt == self.target.retries or not _may_pass(error):
                    raise self._error(error, attempt + 1) from None
            backoff_s = min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
            time.sleep(backoff_s * random.uniform(0.5, 1.0))

    def _error(self, error, tries):
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.target.timed_out()
        if code is grpc.StatusCode.NOT_FOUND:
            return self.target.not_found(details)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return self.target.unknown_answer(details)
        if _TOO_LARGE in details:
            return self.target.too_large(details)
        if code in _RETRIED:
            return self.target.unavailable("gRPC", tries, details)
        return self.target.refused(code.name, details)


def _may_pass(error):
    return error.code() in _RETRIED and _TOO_LARGE not in (error.details() or "")


def _to_array(proto):
    array = tf.make_ndarray(proto)
    if array.dtype != object:
        return array
    texts = [text.decode("utf-8", "replace") for text in array.flat]
    return np.array(texts, dtype=object).reshape(array.shape)


class RestServer:
    """TF Serving's REST API: metadata, and predictions in its row format."""

    def __init__(self, target):
        self.target = target
        self._session = requests.Session()
        retry = _Retry(
            total=target.retries,
            backoff_factor=BACKOFF_S,
            backoff_jitter=BACKOFF_S,
            backoff_max=LONGEST_BACKOFF_S,
            status_forcelist=_RETRIED_HTTP,
            allowed_methods=None,
            raise_on_status=False,
        )
        self._session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
        name = urllib.parse.quote(target.model, safe="")
        version = "" if target.version is None else f"/versions/{target.version}"
        self._url = f"http://{target.address}/v1/models/{name}{version}"

    def close(self):
        self._session.close()

    def signature_defs(self):
        """{name: `SignatureDef`} of the model."""
        body = self._call("GET", f"{self._url}/metadata")
        found = get_model_metadata_pb2.SignatureDefMap()
        try:
            json_format.ParseDict(
                body["metadata"]["signature_def"], found, ignore_unknown_fields=True
            )
        except (KeyError, TypeError, json_format.ParseError) as error:
            raise self.target.unknown_answer(repr(error)) from None
        return found.signature_def

    def request(self, inputs, signature):
        """A request of inputs, {name: array}, and its size in bytes."""
        rows = zip(*(array.tolist() for array in inputs.values()), strict=True)
        instances = [dict(zip(inputs, row, strict=True)) for row in rows]
        body = {"signature_name": signature.name, "instances": instances}
        request = json.dumps(body, ensure_ascii=False).encode("utf-8")
        return request, len(request)

    def predict(self, request, signature):
        """The outputs, {name: array}, strings as objects, of a request."""
        body = self._call("POST", f"{self._url}:predict", request)
        specs = signature.outputs
        try:
            rows = body["predictions"]
            # One output alone has no name there.
            rows = (
                [dict.fromkeys(specs, row) for row in rows] if len(specs) == 1 else rows
            )
            return {
                name: np.array([row[name] for row in rows], spec.dtype.as_numpy_dtype)
                for name, spec in specs.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise self.target.unknown_answer(repr(error)) from None

    def _call(self, method, url, data=None):
        headers = {"Content-Type": "application/json"}
        try:
            response = self._session.request(
                method, url, data=data, headers=headers, timeout=self.target.timeout_s
            )
        except requests.ReadTimeout:
            raise self.target.timed_out() from None
        except requests.RequestException as error:
            # Within it is what the last try met.
            reason = getattr(error.args[0], "reason", error) if error.args else error
            tries = self.target.retries + 1
            raise self.target.unavailable("REST", tries, reason) from None
        try:
            body = json.loads(response.content.decode("utf-8", "replace"))
        except ValueError:
            body = None
        if response.status_code != 200:
            raise self._error(response, body)
        return body

    def _error(self, response, body):
        status, message = response.status_code, response.text or response.reason
        if isinstance(body, dict) and "error" in body:
            # None but TF Serving tells its errors so.
            if status == 404:
                return self.target.not_found(body["error"])
            message = body["error"]
        if status == 413:
            return self.target.too_large(message)
        if status == 504:
            return self.target.timed_out(message)
        if status in _RETRIED_HTTP:
            return self.target.unavailable("REST", self.target.retries + 1, message)
        return self.target.refused(status, message)


class _Retry(urllib3.Retry):
    """Retries, but not of requests that ran out of time: they may still be at work."""

    def increment(self, *arguments, error=None, **named):
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(*arguments, error=error, **named)


def _in_line(message):
    """A message in one line of bounded length."""
    return " ".join(str(message).split())[:500]
