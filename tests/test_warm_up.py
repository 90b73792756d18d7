"""Warm-up records: they hit every length that is served, and the model answers them."""

import itertools

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from deberta_tf import (
    DebertaBytePairTokenizer,
    DebertaEntityScorer,
    DebertaMultipleChoice,
    DebertaQuestionAnswering,
    DebertaSentencePieceTokenizer,
    DebertaSpanClassifier,
    DebertaTextClassifier,
    DebertaTokenClassifier,
)
from tests.small_models import make_backbone
from tools import serving_requests, warm_up

# Neither a multiple of 32, nor near one.
LENGTH = 75
LENGTHS = [32, 64, 75]
PLAN = [(32, 1), (64, 1), (75, 1), (32, 2), (32, 4), (75, 4)]
LABELS = {"labels": ["no", "yes"]}
TASKS = {
    "texts": (DebertaTextClassifier, LABELS),
    "numbers": (DebertaTextClassifier, {"num_classes": 1}),
    "words": (DebertaTokenClassifier, LABELS),
    "answers": (DebertaQuestionAnswering, {}),
    "choices": (DebertaMultipleChoice, {}),
    "entities": (DebertaEntityScorer, {}),
    "spans": (DebertaSpanClassifier, LABELS),
}
every_task = pytest.mark.parametrize("kind", TASKS)


@pytest.fixture
def make_task(sentencepiece_proto):
    return lambda kind, tokenizer=None: make_small_task(
        kind, sentencepiece_proto, tokenizer
    )


def make_small_task(kind, proto, tokenizer=None):
    """One of `TASKS`, of rows of `LENGTH` tokens."""
    task_class, arguments = TASKS[kind]
    tokenizer = tokenizer or DebertaSentencePieceTokenizer(proto)
    return task_class(
        make_backbone(num_layers=1, max_sequence_length=LENGTH),
        preprocessor=task_class.preprocessor_cls(tokenizer, LENGTH),
        **arguments,
    )


def signature(**specs):
    """A SignatureDef of the inputs."""
    found = meta_graph_pb2.SignatureDef()
    for name, spec in specs.items():
        found.inputs[name].dtype = spec.dtype.as_datatype_enum
        found.inputs[name].tensor_shape.CopyFrom(spec.shape.as_proto())
    return found


def signatures_of(task):
    """The SignatureDefs of an export, without the export."""
    ids = {name: tf.TensorSpec(x.shape, tf.int32) for name, x in task.input.items()}
    return {
        **{
            name: signature(**{spec.name: spec for spec in specs})
            for name, (_, specs) in task.signatures().items()
        },
        "token_ids": signature(**ids),
    }


def requests_of(task, signatures=None, max_rows=4):
    signatures = signatures or signatures_of(task)
    return warm_up.make_requests(task, signatures, "model", max_rows)


def arrays(request):
    """{input: array} of a request; strings as bytes."""
    return {name: tf.make_ndarray(x) for name, x in request.inputs.items()}


def row_length(tokenizer, value):
    """Tokens of the longest row of an example, counted text by text.

    One that is a serialized tf.Example holds texts alone.
    """
    if "inputs" in value:
        features = tf.train.Example.FromString(value["inputs"]).features.feature
        value = {name: one.bytes_list.value[0] for name, one in features.items()}

    def count(text):
        return len(tokenizer.tokenize(text))

    if "words" in value:
        first, *others = value["words"]
        return 2 + count(first) + sum(count(b" " + word) for word in others)
    if "query" in value:
        # One [MASK] for the gap.
        after = value["query"].removeprefix(b"@placeholder")
        return 4 + count(value["passage"]) + count(after)
    if "choices" in value:
        return 3 + count(value["text"]) + max(map(count, value["choices"]))
    names = ("text", "text_pair", "question", "context")
    return 1 + sum(count(value[name]) + 1 for name in names if name in value)


def row_lengths(tokenizer, values):
    rows = len(next(iter(values.values())))
    examples = [{name: x[i] for name, x in values.items()} for i in range(rows)]
    return [row_length(tokenizer, one) for one in examples]


@every_task
def test_requests_have_the_lengths_that_are_planned(make_task, kind):
    task = make_task(kind)
    for name in [*task.signatures(), "token_ids"]:
        requests = [
            request
            for request in requests_of(task)
            if request.model_spec.signature_name == name
        ]
        assert len(requests) == len(PLAN)
        for request, (length, rows) in zip(requests, PLAN, strict=True):
            values = arrays(request)
            assert {len(value) for value in values.values()} == {rows}
            if name == "token_ids":
                assert values["token_ids"].shape[-1] == length
                found = [values["padding_mask"].sum(-1).max()] * rows
            else:
                found = row_lengths(task.preprocessor.tokenizer, values)
            below = max(other for other in [0, *LENGTHS] if other < length)
            assert all(below < tokens <= length for tokens in found)


@pytest.mark.parametrize("kind", ["entities", "spans"])
def test_spans_are_of_words(make_task, kind):
    task = make_task(kind)
    for request in requests_of(task):
        values = arrays(request)
        if "token_ids" in values:
            continue
        text = values["passage" if kind == "entities" else "text"][0].decode()
        starts, ends = (
            next(x[0] for name, x in values.items() if name.endswith(side))
            for side in ("_starts", "_ends")
        )
        second = values["text_pair"][0].decode() if "text_pair" in values else text
        for one, start, end in zip((text, second), starts, ends, strict=True):
            assert one[start:end] in warm_up.FILLER


def test_rows_of_ids_are_those_of_their_length(make_task):
    task = make_task("texts")
    by_signature = {}
    for request in requests_of(task):
        by_signature.setdefault(request.model_spec.signature_name, []).append(request)
    for raw, ids in zip(
        by_signature["serving_default"], by_signature["token_ids"], strict=True
    ):
        texts = arrays(raw)["text"]
        expected = task.preprocessor(tf.constant(texts))["token_ids"]
        found = arrays(ids)["token_ids"]
        assert (expected[:, : found.shape[1]] == found).numpy().all()
        assert not expected[:, found.shape[1] :].numpy().any()


def test_examples_are_serialized_for_signatures_that_take_them(make_task):
    task = make_task("spans")
    signatures = signatures_of(task)
    signatures["classify"] = signature(inputs=tf.TensorSpec([None], tf.string))
    requests = requests_of(task, signatures)
    (request, *_) = [x for x in requests if x.model_spec.signature_name == "classify"]
    (serialized,) = arrays(request)["inputs"]
    features = tf.train.Example.FromString(serialized).features.feature
    (text,) = features["text"].bytes_list.value
    starts, ends = (
        features[name].int64_list.value for name in ("span_starts", "span_ends")
    )
    assert set(features) == {"text", "span_starts", "span_ends"}
    assert [text.decode()[slice(*span)] for span in zip(starts, ends, strict=True)] == [
        "The",
        "ferry",
    ]


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_examples_of_pairs_have_both_texts(make_task, kind):
    found = {}
    for request in requests_of(make_task(kind)):
        values = arrays(request)
        if "inputs" in values:
            features = tf.train.Example.FromString(values["inputs"][0]).features.feature
            found.setdefault(request.model_spec.signature_name, set()).update(features)
    method = "classify" if kind == "texts" else "regress"
    assert found == {method: {"text"}, f"{method}_pairs": {"text", "text_pair"}}


def test_byte_pairs_hit_the_lengths_too(make_task):
    vocabulary = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    letters = sorted({*"Ġ.:,", *"".join(warm_up.FILLER)})
    tokens = {token: i for i, token in enumerate([*vocabulary, *letters])}
    tokenizer = DebertaBytePairTokenizer(tokens, [])
    task = make_task("texts", tokenizer)
    for request, (length, rows) in zip(requests_of(task), PLAN, strict=False):
        assert row_lengths(tokenizer, arrays(request)) == pytest.approx(
            [length] * rows, abs=31
        )


def test_a_model_of_512_tokens_stays_far_below_the_limit_of_records():
    lengths = warm_up.served_lengths(512)
    assert lengths == [32 * i for i in range(1, 17)]
    plan = warm_up.plan(lengths, 8, 5)
    assert [length for length, rows in plan if rows == 1] == lengths
    assert len(plan) * 5 < 1000 / 8


@pytest.mark.parametrize("num_signatures", [2, 3, 5, 7])
def test_signatures_of_long_rows_share_the_limit_of_records(num_signatures):
    lengths = warm_up.served_lengths(8192)
    assert len(lengths) == 256
    plan = warm_up.plan(lengths, 8, num_signatures)
    assert num_signatures * len(plan) <= 1000
    alone = [length for length, rows in plan if rows == 1]
    assert (alone[0], alone[-1]) == (32, 8192)
    # Thinned evenly, and no more than need be.
    assert len(alone) >= min(256, 1000 // num_signatures - 4)
    steps = {after - before for before, after in itertools.pairwise(alone)}
    assert steps <= {32, 64}


def test_short_rows_have_one_length():
    assert warm_up.served_lengths(20) == [20]
    assert warm_up.plan([20], 2, 2) == [(20, 1), (20, 2)]


@pytest.mark.parametrize(
    "kind",
    [
        "texts",
        *(pytest.param(k, marks=pytest.mark.slow) for k in TASKS if k != "texts"),
    ],
)
def test_an_exported_model_answers_every_record(make_task, kind, tmp_path):
    task = make_task(kind)
    folder = task.export_for_serving(
        str(tmp_path), complete=lambda path: warm_up.write(task, path, "model", 4)
    )
    served = tf.saved_model.load(folder)
    requests = serving_requests.read_requests(
        f"{folder}/{serving_requests.WARM_UP_PATH}"
    )
    assert {x.model_spec.signature_name for x in requests} == set(served.signatures)
    for request in requests:
        inputs = {name: tf.constant(x) for name, x in arrays(request).items()}
        answers = served.signatures[request.model_spec.signature_name](**inputs)
        rows = {len(value) for value in inputs.values()}
        assert {len(answer) for answer in answers.values()} == rows
