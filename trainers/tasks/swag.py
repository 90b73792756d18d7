"""SWAG, from its official CSV files; TFDS has another data set, HellaSwag."""

from trainers import sources
from trainers.tasks.record import Record, field


def swag_examples(row):
    """A sentence, and four ways to go on from the beginning of the next."""
    beginning = field(row, "sent2")
    example = {
        "texts": [field(row, "sent1")] * 4,
        "choices": [f"{beginning} {field(row, f'ending{i}')}" for i in range(4)],
    }
    label = row.get("label")
    if label is None:
        return [example]
    if label not in ("0", "1", "2", "3"):
        raise ValueError(f"label {label!r} is none of 0, 1, 2, 3")
    return [{**example, "label": int(label)}]


RECORDS = (
    Record(
        name="swag",
        kind="choices",
        files={"train": "train.csv", "dev": "val.csv", "test": "test.csv"},
        scores=("accuracy",),
        best_by="accuracy",
        read_file=sources.read_csv,
        convert=swag_examples,
    ),
)
