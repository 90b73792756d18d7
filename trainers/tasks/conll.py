"""Tags of words: CoNLL-2003 (SPEC 9.5), and files of users in its layout."""

import functools
import itertools
import re

from deberta_tf.files import UsageError
from trainers import sources
from trainers.tasks.record import Record, field

ENTITY_TAGS = (
    "O",
    *(f"{prefix}-{kind}" for kind in ("MISC", "PER", "ORG", "LOC") for prefix in "BI"),
)


_DOCUMENT = "-DOCSTART-"


def read_conll(path):
    """Rows, one a sentence, of a file with a word a line and blank lines between.

    Columns are apart by tabs or spaces; the word is the first, its tag the last. A
    line that begins with -DOCSTART- begins a document.

    Returns:
        list of dicts: "tokens"; "ner", unless the lines are of one column; "document",
        int, where the file has -DOCSTART- lines. The names are TFDS's, whose CoNLL-2003
        has no documents.

    Raises:
        UsageError: if the lines have not all as many columns, or lack a word or tag.
    """
    with sources.open_text(path) as file:
        lines = [line.rstrip("\r\n") for line in file]
    has_documents = any(line.startswith(_DOCUMENT) for line in lines)
    width = next((len(_columns(line)) for line in lines if _is_word(line)), 0)
    rows, document = [], 0
    for is_sentence, block in itertools.groupby(enumerate(lines, 1), _is_numbered_word):
        if not is_sentence:
            document += any(line.startswith(_DOCUMENT) for _, line in block)
            continue
        words = [_word(path, number, line, width) for number, line in block]
        row = {"tokens": [columns[0] for columns in words]}
        if width > 1:
            row["ner"] = [columns[-1] for columns in words]
        rows.append({**row, "document": document} if has_documents else row)
    return rows


def _is_word(line):
    return bool(line.strip()) and not line.startswith(_DOCUMENT)


def _is_numbered_word(numbered):
    return _is_word(numbered[1])


def _word(path, number, line, width):
    columns = _columns(line)
    if len(columns) != width or not (columns[0] and columns[-1]):
        raise UsageError(
            f"{path} line {number} must have {width} columns, as the first word has, "
            f"and none empty. Found: {line!r:.60}"
        )
    return columns


def _columns(line):
    # Words may hold other spaces than these, such as the one that does not break.
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


def tag_examples(row, labels=None):
    """A sentence in words, with a tag for each.

    Args:
        row: dict; one without words, as TFDS ends with, is no example.
        labels: the tags there may be. None: any; they are taken as they stand.
            Otherwise entities all begin with B-, as the original files have it only
            between neighbours of the same type.
    """
    words = field(row, "tokens", list)
    if not words:
        return []
    example = {"words": words}
    if "document" in row:
        example["document"] = row["document"]
    if "ner" not in row:
        return [example]
    tags = field(row, "ner", list)
    strangers = [tag for tag in tags if labels and tag not in labels]
    if strangers:
        raise ValueError(f"tag {strangers[0]!r} is none of {sources.listed(labels)}")
    return [{**example, "tags": begin_entities(tags) if labels else tags}]


def begin_entities(tags):
    """Tags with B- at the first word of each entity, from those with I- there."""
    begun = []
    for before, tag in zip(["O", *tags], tags, strict=False):
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        begun.append(f"B-{tag[2:]}" if begins else tag)
    return begun


def _record(name, **given):
    scores = ("f1", "precision", "recall")
    return Record(
        name=name,
        kind="tags",
        scores=scores,
        best_by="f1",
        read_file=read_conll,
        **given,
    )


RECORDS = (
    _record(
        "conll2003",
        labels=ENTITY_TAGS,
        builder="conll2003",
        splits={"train": "train", "dev": "dev", "test": "test"},
        files={"train": "eng.train", "dev": "eng.testa", "test": "eng.testb"},
        convert=functools.partial(tag_examples, labels=ENTITY_TAGS),
    ),
    # Of users; TFDS has the columns under other names in each data set.
    _record(
        "tags",
        files={"train": "train.txt", "dev": "dev.txt", "test": "test.txt"},
        convert=tag_examples,
    ),
)
