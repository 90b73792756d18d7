"""XNLI: MNLI's task in 15 languages, from TFDS or the official TSV files."""

import functools

from trainers import sources
from trainers.tasks.glue import NLI
from trainers.tasks.record import Record, field, text_examples

LANGUAGES = tuple("ar bg de el en es fr hi ru sw th tr ur vi zh".split())

_PAIR = ("premise", "hypothesis")
# Of xnli.dev.tsv and xnli.test.tsv, and of multinli.train.de.tsv and the like.
_COLUMNS = {
    "language": "language",
    "premise": "sentence1",
    "hypothesis": "sentence2",
    "label": "gold_label",
}
_TRAINING_COLUMNS = {"premise": "premise", "hypothesis": "hypo", "label": "label"}


def read_xnli(path):
    """Rows of a file for evaluation, of all languages, or for training, of one.

    Both have "premise", "hypothesis" and "label"; the former also "language".
    """
    lines = sources.read_tsv_lines(path)
    trains = lines and "hypo" in lines[0]
    columns = _TRAINING_COLUMNS if trains else _COLUMNS
    rows = sources.pick_columns(path, lines, columns, optional=("label",))
    for row in rows:
        # So the translations of MNLI call it.
        if row.get("label") == "contradictory":
            row["label"] = "contradiction"
    return rows


def xnli_examples(row, language=None):
    """A pair in each of its languages, or in the one that is wanted.

    Args:
        row: dict: of a file; of TFDS's `xnli`, with all languages in one; or of MNLI,
            whose language is not told.
        language: str. None: all; it leaves out no row whose language is not told.
    """
    if isinstance(row.get("premise"), dict):
        hypotheses = field(row, "hypothesis", dict)
        rows = [
            {**row, "language": one, "premise": row["premise"][one], "hypothesis": text}
            for one, text in zip(
                hypotheses["language"], hypotheses["translation"], strict=True
            )
        ]
    else:
        rows = [row]
    return [
        {**example, **_language(one)}
        for one in rows
        if language in (None, one.get("language", language))
        for example in text_examples(one, _PAIR, NLI)
    ]


def _language(row):
    return {"language": row["language"]} if "language" in row else {}


def _record(language=None):
    """The record of a language; None: of all, trained in English (SPEC 9.2)."""
    splits = {"dev": "validation", "test": "test"}
    return Record(
        name=f"xnli_{language}" if language else "xnli",
        kind="text",
        labels=NLI,
        builder="xnli",
        # TFDS has no translations to train on.
        splits=splits if language else {"train": "glue/mnli:train", **splits},
        files={
            "train": f"multinli.train.{language or 'en'}.tsv",
            "dev": "xnli.dev.tsv",
            "test": "xnli.test.tsv",
        },
        scores=("accuracy",),
        best_by="accuracy",
        read_file=read_xnli,
        convert=functools.partial(xnli_examples, language=language),
    )


RECORDS = tuple(_record(language) for language in (None, *LANGUAGES))
