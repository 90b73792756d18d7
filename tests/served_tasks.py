"""A small task of every kind that is served, and what it must answer."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

import deberta_tf
from tests.small_models import byte_pair_tokenizer, make_backbone, randomize

TEXTS = ["the old captain sold the harbour.", "", "my sister painted that song! " * 9]
PAIRS = ["nobody", "the jury watched", "\u65e5\u672c \U0001f600"]
LABELS = ["calm", "loud", "na\u00efve"]
SENTENCES = [
    ["the", "captain", "sold", "Oslo", "."],
    ["nobody"],
    ["frozen", "peas", "", "watched", "her", "bicycle", "yesterday"],
]
QUESTIONS = ["who sold?", "what?", "who?", "where?"]
CONTEXTS = [
    "the old captain sold the harbour.",
    "na\u00efve \U0001f600 \ufb01sh and  frozen\u00a0peas",
    "",
    "my sister painted that song! " * 5,
]
CHOICES = [["yes", "no", "my sister"], ["frozen peas", "", "a cat"], ["a", "b", "c"]]
_PASSAGE = "Doctor Quinn sold Oslo. The old captain watched the na\u00efve jury. "
ENTITIES = {
    "passage": [_PASSAGE, _PASSAGE * 3],
    "query": ["who sold @placeholder?", "@placeholder and @placeholder"],
    "entity_starts": [[0, 18, 32], [0, 18, 2 * len(_PASSAGE) + 18]],
    "entity_ends": [[12, 22, 39], [12, 22, 2 * len(_PASSAGE) + 22]],
}
MARKED = {
    "text": ["the old captain sold", "a grey cat"],
    "text_pair": ["my sister has forgotten", "the old cat"],
    "span_starts": [[8, 3], [7, 8]],
    "span_ends": [[15, 9], [10, 11]],
}
MARKED_ALONE = {
    "text": MARKED["text"],
    "span_starts": [[0, 4], [0, 2]],
    "span_ends": [[3, 7], [1, 6]],
}


@dataclasses.dataclass(frozen=True)
class Served:
    """A task to be served.

    `asked` has, by signature, the inputs and what they must give, dicts of arrays.
    """

    task: object
    asked: dict


def make(kind, tokenizer):
    """The `Served` of one of `KINDS`; the tokenizer is one of SentencePiece."""
    return KINDS[kind](tokenizer)


def _make(task_class, preprocessor, **arguments):
    size = preprocessor.tokenizer.vocabulary_size()
    task = task_class(
        make_backbone(vocabulary_size=size + 3, max_sequence_length=72, num_segments=2),
        preprocessor=preprocessor,
        **arguments,
    )
    randomize(task)
    return task


def examples(*columns):
    """Serialized `tf.train.Example`s of texts, and of pairs."""
    names = ("text", "text_pair")[: len(columns)]
    rows = []
    for row in zip(*columns, strict=True):
        example = tf.train.Example()
        for name, text in zip(names, row, strict=True):
            feature = example.features.feature[name]
            feature.bytes_list.value.append(text.encode())
        rows.append(example.SerializeToString())
    return np.array(rows, object)


def _classified(labels, logits):
    scores = tf.nn.softmax(logits).numpy()
    return {
        "label": np.array(labels)[scores.argmax(-1)],
        "score": scores.max(-1),
        "labels": np.array([labels] * len(scores)),
        "scores": scores,
    }


def text_classifier(tokenizer):
    preprocessor = deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, 72)
    task = _make(
        deberta_tf.DebertaTextClassifier, preprocessor, num_classes=3, labels=LABELS
    )
    alone = _classified(LABELS, task.predict(TEXTS, verbose=0))
    pairs = _classified(LABELS, task.predict((TEXTS, PAIRS), verbose=0))

    def convention(answers):
        return {"classes": answers["labels"], "scores": answers["scores"]}

    return Served(
        task,
        {
            "serving_default": ({"text": TEXTS}, alone),
            "text_pairs": ({"text": TEXTS, "text_pair": PAIRS}, pairs),
            "classify": ({"inputs": examples(TEXTS)}, convention(alone)),
            "classify_pairs": ({"inputs": examples(TEXTS, PAIRS)}, convention(pairs)),
        },
    )


def byte_pair_classifier(_):
    return text_classifier(byte_pair_tokenizer())


def regression(tokenizer):
    preprocessor = deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, 72)
    task = _make(deberta_tf.DebertaTextClassifier, preprocessor, num_classes=1)
    alone = task.predict(TEXTS, verbose=0)[:, 0]
    pairs = task.predict((TEXTS, PAIRS), verbose=0)[:, 0]
    return Served(
        task,
        {
            "serving_default": ({"text": TEXTS}, {"score": alone}),
            "text_pairs": ({"text": TEXTS, "text_pair": PAIRS}, {"score": pairs}),
            "regress": ({"inputs": examples(TEXTS)}, {"outputs": alone}),
            "regress_pairs": ({"inputs": examples(TEXTS, PAIRS)}, {"outputs": pairs}),
        },
    )


def token_classifier(tokenizer):
    preprocessor = deberta_tf.DebertaTokenClassifierPreprocessor(tokenizer, 24)
    task = _make(
        deberta_tf.DebertaTokenClassifier, preprocessor, labels=["O", "WHO", "WHAT"]
    )
    width = max(map(len, SENTENCES))
    words = [row + [""] * (width - len(row)) for row in SENTENCES]
    # Places of the words whose first token is in the row, in its order.
    logits = task.predict(SENTENCES, verbose=0)
    _, _, counted = preprocessor(SENTENCES, y=[[1] * len(row) for row in SENTENCES])
    labels = np.full([len(words), width], "", object)
    scores = np.zeros([len(words), width])
    for row, sentence in enumerate(SENTENCES):
        shares = tf.nn.softmax(logits[row][counted[row].numpy() > 0]).numpy()
        places = [index for index, word in enumerate(sentence) if word][: len(shares)]
        labels[row, places] = np.array(task.labels)[shares.argmax(-1)]
        scores[row, places] = shares.max(-1)
    expected = {"labels": labels.astype(str), "scores": scores}
    return Served(task, {"serving_default": ({"words": words}, expected)})


def question_answering(tokenizer):
    preprocessor = deberta_tf.DebertaQuestionAnsweringPreprocessor(
        tokenizer, 32, overlap=8
    )
    task = _make(
        deberta_tf.DebertaQuestionAnswering, preprocessor, no_answer_threshold=0.5
    )
    answers = task.answer(QUESTIONS, CONTEXTS)
    expected = {
        name: np.array([getattr(one, name) for one in answers])
        for name in ("start", "end", "score", "no_answer_score")
    }
    expected["answer"] = np.array([one.text for one in answers])
    given = {"question": QUESTIONS, "context": CONTEXTS}
    return Served(task, {"serving_default": (given, expected)})


def multiple_choice(tokenizer):
    preprocessor = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)
    task = _make(deberta_tf.DebertaMultipleChoice, preprocessor)
    scores = tf.nn.softmax(task.predict((TEXTS, CHOICES), verbose=0)).numpy()
    expected = {"choice": scores.argmax(-1), "scores": scores}
    given = {"text": TEXTS, "choices": CHOICES}
    return Served(task, {"serving_default": (given, expected)})


def entity_scorer(tokenizer):
    preprocessor = deberta_tf.DebertaEntityScorerPreprocessor(
        tokenizer, 48, overlap=8, max_entities=5, max_entity_length=6
    )
    task = _make(deberta_tf.DebertaEntityScorer, preprocessor)
    scores = np.exp(task.score_entities(ENTITIES))[:, :3]
    expected = {"entity": scores.argmax(-1), "scores": scores}
    return Served(task, {"serving_default": (ENTITIES, expected)})


def span_classifier(tokenizer):
    preprocessor = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 40)
    labels = ["other", "same"]
    task = _make(deberta_tf.DebertaSpanClassifier, preprocessor, labels=labels)
    given = {"serving_default": MARKED_ALONE, "text_pairs": MARKED}
    return Served(
        task,
        {
            signature: (x, _classified(labels, task.predict(x, verbose=0)))
            for signature, x in given.items()
        },
    )


KINDS = {
    "text_classifier": text_classifier,
    "byte_pair_classifier": byte_pair_classifier,
    "regression": regression,
    "token_classifier": token_classifier,
    "question_answering": question_answering,
    "multiple_choice": multiple_choice,
    "entity_scorer": entity_scorer,
    "span_classifier": span_classifier,
}


def ops(graph):
    """Names of the ops of a MetaGraphDef, those of its functions too."""
    functions = graph.graph_def.library.function
    nodes = [node for function in functions for node in function.node_def]
    return {node.op for node in [*graph.graph_def.node, *nodes]}


def known_ops(with_text=True):
    """Names of the ops of TensorFlow 2.12, and of TF-Text 2.12."""
    names = ["tensorflow_2.12.txt", *["tensorflow_text_2.12.txt"] * with_text]
    folder = pathlib.Path(__file__).parent / "data" / "served_ops"
    return {op for name in names for op in (folder / name).read_text().split("\n")[1:]}
