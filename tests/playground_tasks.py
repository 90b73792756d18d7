"""A small task of every kind that the playground shows, and how one asks it."""

from deberta_tf import (
    DebertaEntityScorer,
    DebertaMaskedLM,
    DebertaMultipleChoice,
    DebertaQuestionAnswering,
    DebertaReplacedTokenDetection,
    DebertaSentencePieceTokenizer,
    DebertaSpanClassifier,
    DebertaTextClassifier,
    DebertaTokenClassifier,
)
from tests.small_models import make_backbone, randomize
from tools.playground_answers import view_of
from tools.playground_server import make_app

SEQUENCE_LENGTH = 32
NAMES = ["calm", "loud", "na\u00efve"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
INPUTS = {
    "classifier": {"text": "the old captain sold the harbour."},
    "regression": {"text": "nobody painted that song.", "text_pair": "my sister"},
    "tagger": {"text": "Doctor Quinn sold  Oslo to the grey cat ."},
    "answers": {
        "question": "who sold?",
        "context": "Doctor Quinn \U0001f600 sold the boats. My sister watched it. " * 2,
    },
    "choices": {"text": "the jury", "choices": ["my sister", "a grey cat", "Oslo"]},
    "masked_lm": {"text": "the old [MASK] sold the [MASK]."},
    "entities": {
        "passage": "Doctor Quinn sold Oslo. The old captain watched Oslo.",
        "query": "@placeholder was sold.",
        "entities": ["Doctor Quinn", "Oslo", "captain"],
    },
    "spans": {"text": "a grey [cat] sold", "text_pair": "the [cat] watched"},
    "replaced": {"text": "the old captain sold the harbour."},
}
"""What to ask each of the tasks."""


def make_tasks(sentencepiece_proto):
    """{name: task}, randomized, of two layers of two heads; rows of 32 tokens."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)

    def make(kind, *args, backbone=None, **kwargs):
        preprocessor = kind.preprocessor_cls(tokenizer, SEQUENCE_LENGTH)
        task = kind(
            make_backbone(max_sequence_length=96, **backbone or {}),
            *args,
            preprocessor=preprocessor,
            **kwargs,
        )
        randomize(task)
        return task

    generator = make(DebertaMaskedLM, backbone={"num_layers": 1})
    detection = DebertaReplacedTokenDetection(
        make_backbone(max_sequence_length=96),
        generator,
        preprocessor=generator.preprocessor,
    )
    randomize(detection)
    return {
        "classifier": make(DebertaTextClassifier, labels=NAMES),
        "regression": make(DebertaTextClassifier, 1, backbone={"num_segments": 2}),
        "tagger": make(DebertaTokenClassifier, labels=TAGS),
        "answers": make(DebertaQuestionAnswering),
        "choices": make(DebertaMultipleChoice),
        "masked_lm": make(DebertaMaskedLM),
        "entities": make(DebertaEntityScorer),
        "spans": make(DebertaSpanClassifier, labels=["other", "same"]),
        "replaced": detection,
    }


def ask(client, path="answer", **body):
    """What the server says to a request that is right."""
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == 200, response.json
    return response.json


def make_clients(tasks):
    """{name: Flask's test client of the page of that task}."""
    return {
        name: make_app(view_of(task), name).test_client()
        for name, task in tasks.items()
    }
