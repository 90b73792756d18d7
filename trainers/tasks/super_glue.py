"""SuperGLUE, from TFDS or its JSONL files; SPEC 9.2 has the orders of classes."""

import functools

from trainers import sources
from trainers.tasks.glue import ENTAILMENT, NLI
from trainers.tasks.mentions import find_all, find_mention
from trainers.tasks.record import (
    Record,
    check_span,
    class_label,
    field,
    flat_map,
    identity,
    text_examples,
)

TRUTH = ("false", "true")
CHOICES = ("choice1", "choice2")

_PREMISE = ("premise", "hypothesis")


def _by_number(label, names):
    """The name of a class that a file has as its number."""
    return names[label] if label in range(len(names)) else label


def read_copa(path):
    """Rows of COPA, whose file has the right choice as 0 or 1."""
    return [
        {**row, "label": _by_number(row.get("label"), CHOICES)}
        for row in sources.read_jsonl(path)
    ]


def copa_examples(row):
    """The effect comes second: [choice, premise] for a cause, else the other way."""
    choices = [field(row, "choice1"), field(row, "choice2")]
    premises = [field(row, "premise")] * 2
    asked = field(row, "question")
    if asked not in ("cause", "effect"):
        raise ValueError(f"'question' must be 'cause' or 'effect'. Found: {asked!r}")
    first, second = (choices, premises) if asked == "cause" else (premises, choices)
    example = {**identity(row), "texts": first, "choices": second}
    label = class_label(row, CHOICES)
    if label:
        example["label"] = CHOICES.index(label["label"])
    return [example]


def read_multirc(path):
    """Rows of MultiRC, one an answer, from its nested file."""
    return flat_map(path, sources.read_jsonl(path), _answers_of_passage)


def _answers_of_passage(row):
    passage = field(row, "passage", dict)
    return [
        {
            "paragraph": field(passage, "text"),
            "question": field(question, "question"),
            "answer": field(answer, "text"),
            "label": _by_number(answer.get("label"), TRUTH),
            "idx": {
                "paragraph": field(row, "idx", int),
                "question": field(question, "idx", int),
                "answer": field(answer, "idx", int),
            },
        }
        for question in field(passage, "questions", list)
        for answer in field(question, "answers", list)
    ]


def multirc_examples(row):
    """An answer follows its question, with a space between."""
    idx = field(row, "idx", dict)
    return [
        {
            "id": idx,
            "group": (field(idx, "paragraph", int), field(idx, "question", int)),
            "text": field(row, "paragraph"),
            "text_pair": f"{field(row, 'question')} {field(row, 'answer')}",
            **class_label(row, TRUTH),
        }
    ]


def read_record(path):
    """Rows of ReCoRD, one a query, from its nested file.

    Beside TFDS's names they have "spans", (start, end) of the entities in the passage.
    """
    return flat_map(path, sources.read_jsonl(path), _queries_of_passage)


def _queries_of_passage(row):
    passage = field(row, "passage", dict)
    # The file's ends are included.
    spans = [
        (field(entity, "start", int), field(entity, "end", int) + 1)
        for entity in field(passage, "entities", list)
    ]
    return [
        {
            "passage": field(passage, "text"),
            "spans": spans,
            "query": field(query, "query"),
            "answers": [field(one, "text") for one in query.get("answers") or ()],
            "idx": {"passage": row.get("idx"), "query": field(query, "idx", int)},
        }
        for query in field(row, "qas", list)
    ]


def record_examples(row):
    """A query about a passage with marked entities.

    TFDS has the entities' texts alone, without their places. All places of each text
    are taken then, which are more than the file marks: "York" in "New York" also counts
    where the passage has both entities, and so does a name where it is a common word.
    """
    passage, query = field(row, "passage"), field(row, "query")
    if "@placeholder" not in query:
        raise ValueError(f"no '@placeholder' in the query {query!r:.60}")
    if "spans" in row:
        spans = sorted({check_span(passage, *span) for span in row["spans"]})
    else:
        spans = find_all(passage, field(row, "entities", list))
    example = {
        "id": field(row, "idx", dict),
        "passage": passage,
        "query": query,
        "entities": spans,
    }
    answers = sorted(set(field(row, "answers", list)))
    return [{**example, "answers": answers} if answers else example]


def wic_examples(row):
    """A word in two sentences, whose meaning is the same or not."""
    texts = [field(row, f"sentence{i}") for i in (1, 2)]
    spans = [
        check_span(text, field(row, f"start{i}", int), field(row, f"end{i}", int))
        for i, text in enumerate(texts, 1)
    ]
    (example,) = text_examples(row, ("sentence1", "sentence2"), TRUTH)
    return [{**example, "spans": spans}]


def read_wsc(path):
    """Rows of WSC, whose file has the two mentions in an object of their own."""
    return flat_map(path, sources.read_jsonl(path), _with_target)


def _with_target(row):
    return [{**row, **field(row, "target", dict)}]


def wsc_examples(row):
    """A noun phrase and a pronoun in a text, of one person or thing or not."""
    text = field(row, "text")
    spans = [
        find_mention(
            text, field(row, f"span{i}_text"), field(row, f"span{i}_index", int)
        )
        for i in (1, 2)
    ]
    (example,) = text_examples(row, ("text",), TRUTH)
    return [{**example, "spans": spans}]


def _record(name, kind, labels, scores, convert, *, builder=None, **changes):
    """A record with what most of them share, and its `changes` to that."""
    shared = {
        "splits": {"train": "train", "dev": "validation", "test": "test"},
        "files": {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"},
        "best_by": scores[0],
        "read_file": sources.read_jsonl,
    }
    return Record(
        name=name,
        kind=kind,
        labels=labels,
        builder=f"super_glue/{builder or name}",
        scores=scores,
        convert=convert,
        **{**shared, **changes},
    )


def _text_record(name, texts, labels, scores, **changes):
    convert = functools.partial(text_examples, texts=texts, labels=labels)
    return _record(name, "text", labels, scores, convert, **changes)


def _diagnostic_record(name, texts, scores, file):
    where = {"splits": {"test": "test"}, "files": {"test": file}}
    return _text_record(name, texts, ENTAILMENT, scores, **where)


RECORDS = (
    _text_record("boolq", ("passage", "question"), TRUTH, ("accuracy",)),
    _text_record("cb", _PREMISE, NLI, ("macro_f1", "accuracy"), best_by="mean"),
    _record("copa", "choices", None, ("accuracy",), copa_examples, read_file=read_copa),
    _record(
        "multirc",
        "text",
        TRUTH,
        ("f1", "exact"),
        multirc_examples,
        best_by="mean",
        read_file=read_multirc,
    ),
    _record(
        "record",
        "entities",
        None,
        ("f1", "exact"),
        record_examples,
        read_file=read_record,
    ),
    _text_record("superglue_rte", _PREMISE, ENTAILMENT, ("accuracy",), builder="rte"),
    _record("wic", "marked", TRUTH, ("accuracy",), wic_examples),
    # "wsc" of TFDS has mentions that are not in their texts.
    _record(
        "wsc",
        "marked",
        TRUTH,
        ("accuracy",),
        wsc_examples,
        builder="wsc.fixed",
        read_file=read_wsc,
    ),
    _diagnostic_record("axb", ("sentence1", "sentence2"), ("matthews",), "AX-b.jsonl"),
    _diagnostic_record("axg", _PREMISE, ("accuracy",), "AX-g.jsonl"),
)
