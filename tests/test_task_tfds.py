"""Rows of the installed builders of TFDS, without a download."""

import contextlib
import functools

import pytest
import tensorflow as tf

from trainers.tasks import xnli
from trainers.tasks.table import TASKS

tfds = pytest.importorskip("tensorflow_datasets")
from etils import epath  # noqa: E402


@contextlib.contextmanager
def rows_of_tfds(*rows):
    """Lets every builder have these rows, which must have all its features."""

    def as_dataset(builder, split, **_):
        features = builder.info.features
        assert all(set(row) == set(features) for row in rows), list(features)
        parts = [
            tf.data.Dataset.from_tensors(
                {name: tensors(features[name], row[name]) for name in features}
            )
            for row in rows
        ]
        return functools.reduce(tf.data.Dataset.concatenate, parts)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        yield


def tensors(feature, value):
    """The value as the feature gives it: class labels by their numbers."""
    kinds = tfds.features
    if isinstance(feature, kinds.Sequence):
        return list_tensors(feature, value)
    if isinstance(value, dict):
        return {name: tensors(feature[name], one) for name, one in value.items()}
    if isinstance(feature, kinds.ClassLabel):
        value = feature.encode_example(value)
    return tf.constant(value, feature.dtype)


def list_tensors(feature, value):
    inner, dtype = feature.feature, feature.dtype
    if isinstance(value, dict):
        return {
            name: tf.constant(one, dtype[name], (len(one),))
            for name, one in value.items()
        }
    if isinstance(inner, tfds.features.ClassLabel):
        value = [inner.encode_example(one) for one in value]
    return tf.ragged.constant(value, dtype)


def read(name, source, *rows, **arguments):
    with rows_of_tfds(*rows):
        return TASKS[name].read(source, **arguments).columns


class FakeDownloads:
    """Gives a path for every address."""

    def download(self, addresses):
        if isinstance(addresses, dict):
            return dict.fromkeys(addresses, epath.Path("nowhere"))
        return epath.Path("nowhere")

    download_and_extract = download


def splits_of(name):
    made = tfds.builder(name, data_dir="nowhere")._split_generators(FakeDownloads())
    return set(made) if isinstance(made, dict) else {str(one.name) for one in made}


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].builder])
def test_builders_have_the_splits(name):
    task = TASKS[name]
    for split in task.splits:
        _, builders, its = task.source(split).split(":")
        for builder in builders.split("+"):
            assert its in splits_of(builder)


SEGMENTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("sentence", "question"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
    "boolq": ("passage", "question"),
    "cb": ("premise", "hypothesis"),
    "superglue_rte": ("premise", "hypothesis"),
    "axb": ("sentence1", "sentence2"),
    "axg": ("premise", "hypothesis"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_and_every_class_come_by_name_and_hidden_ones_are_none(name):
    task = TASKS[name]
    features = tfds.builder(task.builder, data_dir="nowhere").info.features
    names = features["label"].names
    assert {one.lower() for one in names} == set(task.labels)
    row = {one: one for one in features} | {"idx": 7}
    rows = [{**row, "label": one} for one in names]
    columns = read(name, f"tfds:{task.builder}:train", *rows)
    segments = ("text", "text_pair")
    assert columns == {
        "id": [7] * len(names),
        **{
            ours: [its] * len(names)
            for ours, its in zip(segments, SEGMENTS[name], strict=False)
        },
        "label": [one.lower() for one in names],
    }
    hidden = {**row, "label": -1}
    columns = read(name, f"tfds:{task.builder}:test", hidden, needs_labels=False)
    assert "label" not in columns


def test_scores_of_stsb_are_hidden_behind_minus_one():
    row = {"sentence1": "a", "sentence2": "b", "label": 4.5, "idx": 0}
    assert read("stsb", "tfds:glue/stsb:train", row)["label"] == [4.5]
    row["label"] = -1.0
    columns = read("stsb", "tfds:glue/stsb:test", row, needs_labels=False)
    assert columns == {"id": [0], "text": ["a"], "text_pair": ["b"]}


def test_rows_of_copa():
    row = {"premise": "p", "choice1": "c", "choice2": "d", "question": "effect"}
    row |= {"idx": 3, "label": "choice2"}
    assert read("copa", "tfds:super_glue/copa:train", row) == {
        "id": [3],
        "texts": [["p", "p"]],
        "choices": [["c", "d"]],
        "label": [1],
    }


def test_rows_of_multirc():
    idx = {"paragraph": 1, "question": 2, "answer": 3}
    row = {"paragraph": "p", "question": "q?", "answer": "yes", "idx": idx}
    columns = read("multirc", "tfds:super_glue/multirc:train", {**row, "label": "True"})
    assert columns == {
        "id": [idx],
        "group": [(1, 2)],
        "text": ["p"],
        "text_pair": ["q? yes"],
        "label": ["true"],
    }


def test_entities_of_record_are_found_in_the_passage():
    row = {"passage": "Zoë met Ann. Ann left.", "query": "@placeholder left"}
    row |= {"entities": ["Ann", "Zoë"], "answers": ["Ann"]}
    row |= {"idx": {"passage": 1, "query": 2}}
    source = "tfds:super_glue/record:train"
    columns = read("record", source, row)
    assert columns["entities"] == [[(0, 3), (8, 11), (13, 16)]]
    assert columns["answers"] == [["Ann"]]
    assert columns["id"] == [{"passage": 1, "query": 2}]
    hidden = {**row, "answers": tf.constant([], tf.string)}
    assert "answers" not in read("record", source, hidden, needs_labels=False)


def test_rows_of_wic_and_wsc():
    row = {"sentence1": "é bank", "sentence2": "bank", "word": "bank", "idx": 0}
    row |= {"start1": 2, "end1": 6, "start2": 0, "end2": 4, "label": "False"}
    columns = read("wic", "tfds:super_glue/wic:train", row)
    assert (columns["spans"], columns["label"]) == ([[(2, 6), (0, 4)]], ["false"])
    row = {"text": "Mark lied. He did.", "idx": 0, "label": "True"}
    row |= {"span1_text": "Mark", "span1_index": 0}
    row |= {"span2_text": "He", "span2_index": 2}
    columns = read("wsc", TASKS["wsc"].source("train"), row)
    assert (columns["spans"], columns["label"]) == ([[(0, 4), (11, 13)]], ["true"])


def test_rows_of_squad():
    row = {"id": "5a", "title": "", "context": "Zoë: Oslo", "question": "Where?"}
    row |= {"answers": {"text": ["Oslo"], "answer_start": [5]}}
    columns = read("squad1", TASKS["squad1"].source("train"), row)
    assert (columns["answers"], columns["answer_starts"]) == ([["Oslo"]], [[5]])
    none = {
        "text": tf.constant([], tf.string),
        "answer_start": tf.constant([], "int32"),
    }
    row |= {"answers": none, "plausible_answers": none, "is_impossible": True}
    columns = read("squad2", TASKS["squad2"].source("dev"), row)
    assert (columns["answers"], columns["answer_starts"]) == ([[]], [[]])


def test_rows_of_race_come_from_both_levels():
    options = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    row = {"article": "x.", "questions": ["q?", "r?"], "answers": ["D", "A"]}
    row |= {"options": options, "example_id": "high5.txt"}
    columns = read("race", TASKS["race"].source("dev"), row)
    # The same rows for race/middle and for race/high.
    assert columns["id"] == ["high5.txt-0", "high5.txt-1"] * 2
    assert columns["choices"][1] == ["r? e", "r? f", "r? g", "r? h"]
    assert columns["label"] == [3, 0, 3, 0]


def test_tags_of_conll2003_come_by_name_and_the_empty_last_row_is_none():
    row = {"tokens": ["Ann", "left"], "ner": ["B-PER", "O"]}
    row |= {"pos": ["NNP", "VBD"], "chunks": ["B-NP", "B-VP"]}
    empty = dict.fromkeys(row, [])
    assert read("conll2003", "tfds:conll2003:train", row, row, empty) == {
        "id": [0, 1],
        "words": [["Ann", "left"]] * 2,
        "tags": [["B-PER", "O"]] * 2,
        "document": [0, 1],
    }


def test_rows_of_xnli_have_all_languages():
    features = tfds.builder("xnli", data_dir="nowhere").info.features
    assert set(features["premise"]) == set(xnli.LANGUAGES)
    premise = dict.fromkeys(xnli.LANGUAGES, "p") | {"de": "b"}
    hypothesis = {"language": ["de", "en"], "translation": ["h", "i"]}
    row = {"premise": premise, "hypothesis": hypothesis, "label": "neutral"}
    source = TASKS["xnli"].source("dev")
    assert read("xnli", source, row) == {
        "id": [0, 1],
        "text": ["b", "p"],
        "text_pair": ["h", "i"],
        "label": ["neutral"] * 2,
        "language": ["de", "en"],
    }
    german = read("xnli_de", source, row)
    assert (german["text"], german["text_pair"]) == (["b"], ["h"])


def test_xnli_trains_on_mnli():
    row = {"premise": "p", "hypothesis": "h", "label": "contradiction", "idx": 5}
    columns = read("xnli", TASKS["xnli"].source("train"), row)
    assert (columns["id"], columns["label"]) == ([5], ["contradiction"])
