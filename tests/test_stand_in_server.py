"""The stand-in for TF Serving refuses and writes what TF Serving's sources say."""

import grpc
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc

from tests.stand_in_server import StandInServer
from tools.serving_requests import predict_request


class Lengths(tf.Module):
    """Judges texts by their bytes."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def measure(self, text):
        return {"length": tf.strings.length(text)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None, None], tf.float32, name="weights"),
        ]
    )
    def weigh(self, text, weights):
        length = tf.cast(tf.strings.length(text), tf.float32)
        return {"text": text, "weights": weights * length[:, tf.newaxis]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        text = tf.io.parse_example(
            inputs, {"text": tf.io.FixedLenFeature([], tf.string)}
        )
        score = 1 / tf.cast(1 + tf.strings.length(text["text"]), tf.float32)
        names = tf.tile([["short", "long"]], [tf.shape(inputs)[0], 1])
        return {"classes": names, "scores": tf.stack([score, 1 - score], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        return {"outputs": self.classify(inputs)["scores"][:, :1]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model, folder = Lengths(), tmp_path_factory.mktemp("served")
    signatures = {
        "serving_default": model.measure,
        "weigh": model.weigh,
        "classify": model.classify,
        "regress": model.regress,
    }
    tf.saved_model.save(model, str(folder / "7"), signatures)
    with StandInServer("lengths", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def post(server):
    """Posts JSON to a method of the model; returns the status and the answer."""

    def post(method, body):
        url = f"http://{server.rest_address}/v1/models/lengths/versions/7:{method}"
        response = requests.post(url, json=body, timeout=60)
        return response.status_code, response.json()

    return post


def test_an_output_that_is_alone_has_no_name(post):
    assert post("predict", {"instances": ["a", "bcd"]}) == (
        200,
        {"predictions": [1, 3]},
    )
    assert post("predict", {"inputs": {"text": ["a", "bcd"]}}) == (
        200,
        {"outputs": [1, 3]},
    )


def test_rows_and_columns_are_two_formats_of_the_same(post):
    rows = [{"text": "ab", "weights": [0.1, 2]}, {"text": "é", "weights": [1, 0]}]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    _, by_row = post("predict", {"signature_name": "weigh", "instances": rows})
    _, by_column = post("predict", {"signature_name": "weigh", "inputs": columns})
    assert by_row["predictions"] == [
        {"text": "ab", "weights": [0.2, 4.0]},
        {"text": "é", "weights": [2.0, 0.0]},
    ]
    assert by_column["outputs"] == {
        name: [row[name] for row in by_row["predictions"]] for name in rows[0]
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [3]}, "JSON Value: 3 is not of expected type: string"),
        ({"instances": []}, "No values in 'instances' array"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": ["a"], "inputs": ["a"]}, "only one of 'inputs' or 'instances'"),
        ({"instances": [{"txt": "a"}]}, "does not have named input: txt"),
        ({"signature_name": "weigh", "instances": ["a"]}, "multiple input tensors"),
        ({"signature_name": "no", "instances": ["a"]}, 'Serving signature name: "no"'),
        (
            {"signature_name": "weigh", "instances": [{"text": "a"}]},
            "keys must be equal to: text,weights",
        ),
        (
            {
                "signature_name": "weigh",
                "instances": [{"text": "", "weights": w} for w in ([1], [1, 2])],
            },
            r"Failed to process element: 1 .* Expecting shape \(1,\) but got: \(2,\)",
        ),
    ],
)
def test_json_that_is_no_request_is_a_bad_request(post, body, message):
    status, answer = post("predict", body)
    assert status == 400
    assert [*answer] == ["error"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer["error"])


def test_the_status_lists_versions(server):
    url = f"http://{server.rest_address}/v1/models/lengths"
    (status,) = requests.get(url, timeout=60).json()["model_version_status"]
    assert (status["version"], status["state"]) == ("7", "AVAILABLE")
    assert requests.get(url + "s", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("inputs", "signature", "code", "message"),
    [
        ({"text": [1]}, "", "INVALID_ARGUMENT", "text: .* string but int32"),
        ({"text": [["a"]]}, "", "INVALID_ARGUMENT", r"text: .* shape \(1, 1\)"),
        ({"text": ["a"]}, "weigh", "INVALID_ARGUMENT", "required: {weights}"),
        ({"text": ["a"], "b": [1]}, "", "INVALID_ARGUMENT", "Sent extra: {b}"),
        ({"text": ["a"]}, "no", "FAILED_PRECONDITION", 'key "no" not found'),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stub, inputs, signature, code, message):
    with pytest.raises(grpc.RpcError, match=message) as refusal:
        stub.Predict(predict_request("lengths", inputs, signature), timeout=60)
    assert refusal.value.code() is grpc.StatusCode[code]


def test_examples_are_classified_by_both_protocols(post, stub):
    body = {"signature_name": "classify", "examples": [{"text": "a"}, {"text": "abc"}]}
    expected = [[["short", 0.5], ["long", 0.5]], [["short", 0.25], ["long", 0.75]]]
    assert post("classify", body) == (200, {"results": expected})
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "lengths", "classify"
    for text in (b"a", b"abc"):
        example = request.input.example_list.examples.add()
        example.features.feature["text"].bytes_list.value.append(text)
    result = stub.Classify(request, timeout=60).result
    assert expected == [
        [[one.label, one.score] for one in found.classes]
        for found in result.classifications
    ]


def test_examples_may_share_a_context(post):
    body = {
        "signature_name": "regress",
        "context": {"text": "abc"},
        "examples": [{}, {}],
    }
    assert post("regress", body) == (200, {"results": [0.25, 0.25]})


@pytest.mark.parametrize("signature", ["serving_default", "regress", "no"])
def test_signatures_that_do_not_classify_are_refused(post, signature):
    body = {"signature_name": signature, "examples": [{"text": "a"}]}
    assert post("classify", body)[0] == 400
