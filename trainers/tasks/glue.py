"""GLUE, from TFDS or its TSV files; SPEC 9.2 has the orders of segments and classes."""

import functools

from trainers import sources
from trainers.tasks.record import Record, text_examples

NLI = ("contradiction", "neutral", "entailment")
ENTAILMENT = ("not_entailment", "entailment")

_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}
_PREMISE = {"premise": "sentence1", "hypothesis": "sentence2"}
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}


def read_glue(path, texts, label="label", digits=None, header=None):
    """Rows of a TSV file of GLUE.

    Args:
        path: str.
        texts: dict from TFDS's names of the segments to the file's.
        label: str. The column of the label, which test sets lack.
        digits: names of the classes that the file has as 0, 1, ...
        header: names of the columns of a file that has no header line.

    Returns:
        list of dicts, with TFDS's names.
    """
    lines = sources.read_tsv_lines(path)
    if header and lines and not set(texts.values()) <= set(lines[0]):
        lines.insert(0, header)
    columns = {**texts, "label": label}
    rows = sources.pick_columns(path, lines, columns, optional=("label",))
    names = {str(digit): name for digit, name in enumerate(digits or ())}
    for row in rows:
        if "label" in row:
            row["label"] = names.get(row["label"], row["label"])
    return rows


def _record(name, texts, labels, scores, best_by=None, splits=None, files=None, **file):
    """A record; `file` has what `read_glue` is told beside the segments."""
    return Record(
        name=name,
        kind="text",
        labels=labels,
        builder=f"glue/{name}",
        splits=splits or _SPLITS,
        files=files or _FILES,
        scores=scores,
        best_by=best_by or scores[0],
        read_file=functools.partial(read_glue, texts=texts, **file),
        convert=functools.partial(text_examples, texts=tuple(texts), labels=labels),
    )


def _digit_record(name, texts, labels, *arguments, **file):
    return _record(name, texts, labels, *arguments, digits=labels, **file)


RECORDS = (
    _digit_record(
        "cola",
        {"sentence": "sentence"},
        ("unacceptable", "acceptable"),
        ("matthews", "accuracy"),
        header=["source", "label", "star", "sentence"],
    ),
    _digit_record(
        "sst2", {"sentence": "sentence"}, ("negative", "positive"), ("accuracy",)
    ),
    _digit_record(
        "mrpc",
        {"sentence1": "#1 String", "sentence2": "#2 String"},
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        "mean",
        label="Quality",
    ),
    _digit_record(
        "qqp",
        {"question1": "question1", "question2": "question2"},
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        "mean",
        label="is_duplicate",
    ),
    _record("stsb", _SENTENCES, None, ("pearson", "spearman"), "mean", label="score"),
    _record(
        "mnli",
        _PREMISE,
        NLI,
        ("accuracy",),
        splits={
            "train": "train",
            "dev": "validation_matched",
            "dev_mismatched": "validation_mismatched",
            "test": "test_matched",
            "test_mismatched": "test_mismatched",
        },
        files={
            "train": "train.tsv",
            "dev": "dev_matched.tsv",
            "dev_mismatched": "dev_mismatched.tsv",
            "test": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
        },
        label="gold_label",
    ),
    # The sentence comes first in the official code, the question in the files.
    _record(
        "qnli",
        {"sentence": "sentence", "question": "question"},
        ENTAILMENT,
        ("accuracy",),
    ),
    _record("rte", _SENTENCES, ENTAILMENT, ("accuracy",)),
    _digit_record("wnli", _SENTENCES, ENTAILMENT, ("accuracy",)),
    _record(
        "ax",
        _PREMISE,
        NLI,
        ("matthews",),
        splits={"test": "test"},
        files={"test": "diagnostic.tsv"},
    ),
)
