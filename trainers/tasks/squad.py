"""SQuAD 1.1 and 2.0, from TFDS or the official JSON files."""

import functools

from trainers import sources
from trainers.tasks.record import Record, field, flat_map


def read_squad(path):
    """Rows of SQuAD, one a question, from its nested file, as TFDS has them."""
    return flat_map(path, [sources.read_json(path)], _questions_of_file)


def _questions_of_file(content):
    return [
        {
            "id": field(question, "id"),
            "question": field(question, "question"),
            "context": field(paragraph, "context"),
            "answers": _columns(question),
        }
        for article in field(content, "data", list)
        for paragraph in field(article, "paragraphs", list)
        for question in field(paragraph, "qas", list)
    ]


def _columns(question):
    """Answers as TFDS has them; None: hidden."""
    if "answers" not in question:
        return None
    answers = field(question, "answers", list)
    return {
        "text": [field(answer, "text") for answer in answers],
        "answer_start": [field(answer, "answer_start", int) for answer in answers],
    }


def squad_examples(row, always_answered):
    """A question about a context, with its answers as they stand in it.

    Args:
        row: dict.
        always_answered: bool. Whether answers that lack are hidden ones, rather than a
            question without an answer.

    Raises:
        ValueError: if an answer is not at its place in the context.
    """
    example = {name: field(row, name) for name in ("id", "question", "context")}
    answers = row.get("answers")
    if answers is None or (always_answered and not answers["text"]):
        return [example]
    texts, starts = answers["text"], answers["answer_start"]
    for text, start in zip(texts, starts, strict=True):
        found = example["context"][start : start + len(text)]
        if start < 0 or not text or found != text:
            raise ValueError(
                f"question {example['id']!r} has the answer {text!r:.60} at character "
                f"{start} of its context, where {found!r:.60} is"
            )
    return [{**example, "answers": texts, "answer_starts": starts}]


def _record(name, version, always_answered):
    return Record(
        name=name,
        kind="spans",
        builder=f"squad/v{version}",
        splits={"train": "train", "dev": "validation"},
        files={"train": f"train-v{version}.json", "dev": f"dev-v{version}.json"},
        scores=("f1", "exact"),
        best_by="f1",
        has_unanswerable=not always_answered,
        read_file=read_squad,
        convert=functools.partial(squad_examples, always_answered=always_answered),
    )


RECORDS = (
    _record("squad1", "1.1", always_answered=True),
    _record("squad2", "2.0", always_answered=False),
)
