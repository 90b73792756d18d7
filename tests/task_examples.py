"""A few examples of every kind of task, of words that the test vocabulary has."""

import dataclasses

import numpy as np

from trainers.finetune_config import FinetuneConfig
from trainers.finetune_data import make_setup
from trainers.tasks.record import TaskExamples

_PASSAGE = "Doctor Quinn sold Oslo. The old captain watched the na\u00efve jury. "
COLUMNS = {
    "mrpc": {
        "id": [0, 1, 2],
        "text": ["the jury", "a grey cat", "that song"],
        "text_pair": ["my sister", "a cat", "the song"],
        "label": ["not_equivalent", "equivalent", "equivalent"],
    },
    "multirc": {
        "id": [
            {"paragraph": 0, "question": q, "answer": a}
            for q, a in [(0, 0), (0, 1), (1, 2)]
        ],
        "group": [(0, 0), (0, 0), (0, 1)],
        "text": ["the old captain sold the harbour."] * 3,
        "text_pair": ["who? nobody", "who? captain", "what? harbour"],
        "label": ["false", "true", "true"],
    },
    "stsb": {
        "id": [0, 1, 2],
        "text": ["the jury", "a grey cat", "that song"],
        "text_pair": ["my sister", "a cat", "the song"],
        "label": [0.5, 4.0, 5.0],
    },
    "conll2003": {
        "id": [0, 1, 2, 3],
        "words": [
            ["Doctor", "Quinn", "sold", "Oslo"],
            ["nobody"],
            ["the", "captain", ""] * 8,
            ["Oslo"],
        ],
        "tags": [
            ["B-PER", "I-PER", "O", "B-LOC"],
            ["O"],
            ["O", "B-MISC", "O"] * 8,
            ["B-LOC"],
        ],
        "document": [1, 1, 1, 2],
    },
    "squad1": {
        "id": ["a", "b"],
        "question": ["who sold?", "who watched?"],
        "context": [_PASSAGE, _PASSAGE * 3],
        "answers": [["Doctor Quinn", "Quinn"], ["captain"]],
        "answer_starts": [[0, 7], [_PASSAGE.index("captain") + 2 * len(_PASSAGE)]],
    },
    "squad2": {
        "id": ["a", "b", "c"],
        "question": ["who sold?", "who watched?", "why?"],
        "context": [_PASSAGE, _PASSAGE * 3, _PASSAGE],
        "answers": [["Doctor Quinn"], ["captain"], []],
        "answer_starts": [[0], [_PASSAGE.index("captain")], []],
    },
    "race": {
        "id": ["high1-0", "middle2-0", "high3-0"],
        "level": ["high", "middle", "high"],
        "texts": [["the jury"] * 4, ["a cat"] * 4, ["that song"] * 4],
        "choices": [["who? nobody", "who? Oslo", "who? peas", "who? my sister"]] * 3,
        "label": [3, 0, 1],
    },
    "record": {
        "id": [{"passage": 0, "query": 0}, {"passage": 1, "query": 1}],
        "passage": [_PASSAGE, _PASSAGE * 3],
        "query": ["who sold @placeholder?", "@placeholder watched"],
        # "Doctor Quinn" and "Oslo"; of the long one also its last "captain".
        "entities": [
            [(0, 12), (18, 22)],
            [(0, 12), (18, 22), *[(2 * len(_PASSAGE) + 32, 2 * len(_PASSAGE) + 39)]],
        ],
        "answers": [["Oslo"], ["captain"]],
    },
    "wic": {
        "id": [0, 1],
        "text": ["a grey cat", "the old captain"],
        "text_pair": ["the cat sold", "my sister"],
        "spans": [[(7, 10), (4, 7)], [(8, 15), (3, 9)]],
        "label": ["true", "false"],
    },
}


def make(name, **settings):
    """(setup, examples) of a task."""
    examples = TaskExamples("examples", COLUMNS[name])
    config = FinetuneConfig(
        task=name,
        preset="unused",
        model_dir="unused",
        sequence_length=32,
        window_overlap=8,
        **settings,
    )
    return make_setup(config, examples), examples


def hidden(examples, name):
    """The examples without their answers."""
    columns = {key: value for key, value in examples.columns.items() if key != name}
    return dataclasses.replace(examples, columns=columns)


def perfect_outputs(setup, encoded):
    """What a model that is right about every row would give."""
    kind, targets = setup.record.kind, encoded.targets
    if setup.record.name == "stsb":
        return targets[:, None]
    if kind == "spans":
        length = encoded.inputs["token_ids"].shape[1]
        return 9.0 * np.stack(
            [np.eye(length)[targets[:, 0]], np.eye(length)[targets[:, 1]]], axis=-1
        ).astype("float32")
    if kind == "entities":
        return (18.0 * targets - 9.0).astype("float32")
    size = encoded.inputs["token_ids"].shape[1] if kind == "choices" else None
    return 9.0 * np.eye(size or len(setup.names), dtype="float32")[targets]
