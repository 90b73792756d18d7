"""The serving client fills up, batches and cuts as the signature of each task needs."""

import grpc
import numpy as np
import pytest
import requests
from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc

import deberta_tf
from tests.client_checks import ask, check_same, own_answers, serve

WORDS = [["the", "captain", "", "sold", "Oslo"], [], ["nobody"], ["frozen", "peas"] * 6]
QUESTIONS = [
    {"question": "who sold it?", "context": "the old captain sold the harbour " * 3},
    {"question": "", "context": "nobody"},
    {"question": "what was painted?", "context": "my sister painted « that song »"},
]
CHOICES = [
    {"text": "the jury", "choices": ["sold it.", "never liked it."]},
    {"text": "nobody", "choices": ["", "painted the harbour"]},
    {"text": "a grey cat", "choices": ["remembers", "sold", "is mending peas"]},
]
ENTITIES = [
    {
        "passage": "Doctor Quinn painted Oslo and the captain yesterday.",
        "query": "nobody sold @placeholder",
        "entity_starts": [0, 21, 34],
        "entity_ends": [12, 25, 41],
    },
    {
        "passage": "nobody",
        "query": "@placeholder sold it",
        "entity_starts": [0],
        "entity_ends": [6],
    },
]


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_proto):
    return deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)


def check_one_by_one(server, folder, values, num_batches):
    """By both protocols answers are those that each example gets alone."""
    for protocol in ("grpc", "rest"):
        answers = ask(folder, server, protocol, values)
        assert len(server.requests) == num_batches
        server.requests.clear()
        for value, answer in zip(values, answers, strict=True):
            alone = {name: [one] for name, one in value.items()}
            check_same([answer], own_answers(server, **alone))


def test_words_of_any_number_share_a_batch(tokenizer, tmp_path):
    task_class = deberta_tf.DebertaTokenClassifier
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    width = max(map(len, WORDS))
    words = [row + [""] * (width - len(row)) for row in WORDS]
    with serve(task_class, preprocessor, tmp_path, labels=["O", "B"]) as server:
        expected = own_answers(server, words=words)
        for protocol in ("grpc", "rest"):
            answers = ask(tmp_path, server, protocol, [{"words": row} for row in WORDS])
            assert server.requests.pop() == (protocol, len(WORDS))
            for row, answer in enumerate(answers):
                own = slice(row, row + 1), slice(len(WORDS[row]))
                check_same([answer], {name: one[own] for name, one in expected.items()})


def test_questions_are_answered_with_text_and_characters(tokenizer, tmp_path):
    task_class = deberta_tf.DebertaQuestionAnswering
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    columns = {name: [one[name] for one in QUESTIONS] for name in QUESTIONS[0]}
    with serve(task_class, preprocessor, tmp_path) as server:
        expected = own_answers(server, **columns)
        for protocol in ("grpc", "rest"):
            check_same(ask(tmp_path, server, protocol, QUESTIONS), expected)


@pytest.mark.slow
def test_entities_of_any_number_share_a_batch(tokenizer, tmp_path):
    task_class = deberta_tf.DebertaEntityScorer
    preprocessor = task_class.preprocessor_cls(
        tokenizer, 48, overlap=8, max_entities=5, max_entity_length=6
    )
    with serve(task_class, preprocessor, tmp_path) as server:
        check_one_by_one(server, tmp_path, ENTITIES, num_batches=1)


@pytest.mark.slow
def test_choices_of_one_number_share_a_batch(tokenizer, tmp_path):
    task_class = deberta_tf.DebertaMultipleChoice
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    with serve(task_class, preprocessor, tmp_path) as server:
        check_one_by_one(server, tmp_path, CHOICES, num_batches=2)


@pytest.mark.slow
def test_a_regression_gives_its_score_alone(tokenizer, tmp_path):
    task_class = deberta_tf.DebertaTextClassifier
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    texts = [{"text": "nobody"}, {"text": "a letter from Oslo"}]
    with serve(task_class, preprocessor, tmp_path, num_classes=1) as server:
        check_one_by_one(server, tmp_path, texts, num_batches=1)


def test_a_classifier_answers_classify_by_both_protocols(tokenizer, tmp_path):
    """TF Serving's own convention, which needs no client of ours."""
    task_class = deberta_tf.DebertaTextClassifier
    preprocessor = task_class.preprocessor_cls(tokenizer, 32)
    texts, labels = ["nobody", "a « naïve » letter"], ["calm", "naïve"]
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "deberta"
    request.model_spec.signature_name = "classify"
    for text in texts:
        feature = request.input.example_list.examples.add().features.feature["text"]
        feature.bytes_list.value.append(text.encode())
    body = {
        "signature_name": "classify",
        "examples": [{"text": text} for text in texts],
    }
    with serve(task_class, preprocessor, tmp_path, labels=labels) as server:
        scores = own_answers(server, text=texts)["scores"]
        url = f"http://{server.rest_address}/v1/models/deberta:classify"
        by_rest = requests.post(url, json=body, timeout=60).json()["results"]
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            response = stub.Classify(request, timeout=60)
    by_grpc = [
        [[one.label, one.score] for one in found.classes]
        for found in response.result.classifications
    ]
    for answers in (by_rest, by_grpc):
        assert [[label for label, _ in row] for row in answers] == [labels] * 2
        found = [[score for _, score in row] for row in answers]
        np.testing.assert_allclose(found, scores, rtol=1e-6, atol=1e-6)
