"""Labelled data from files and TFDS, and one line for each mistake in them."""

import json

import numpy as np
import pytest

from deberta_tf.files import UsageError
from trainers import examples

COLUMNS = ("sentence",), "label"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def read(path, text, text_columns=("sentence",), **arguments):
    source = write(path, text)
    return examples.read_examples(source, text_columns, "label", **arguments)


def test_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    text = 'sentence,label\n"a, ""b""\nc",yes\r\nd,no\n\n'
    data = read(tmp_path / "x.csv", text)
    assert data.texts == (['a, "b"\nc', "d"],)
    assert data.labels == ["yes", "no"]
    assert len(data) == 2


def test_tsv_takes_quotes_as_they_stand(tmp_path):
    text = 'label\tsentence\nyes\t"a\nno\tb" \r\nyes\tc\rd\n'
    data = read(tmp_path / "x.tsv", text)
    assert data.texts == (['"a', 'b" ', "c\rd"],)
    assert data.labels == ["yes", "no", "yes"]


def test_jsonl_labels_of_any_kind_become_text(tmp_path):
    rows = [{"sentence": "é", "label": label} for label in ("a", 1, 0.5, True)]
    data = read(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert data.texts == (["é"] * 4,)
    assert data.labels == ["a", "1", "0.5", "true"]


def test_the_mark_of_spreadsheets_is_not_part_of_a_name(tmp_path):
    path = write(tmp_path / "x.csv", "sentence,label\na,b\n", "utf-8-sig")
    assert examples.read_examples(path, *COLUMNS).labels == ["b"]


def test_pairs_take_two_columns(tmp_path):
    text = "question\tsentence\tlabel\nq\ts\tyes\n"
    data = read(tmp_path / "x.tsv", text, ("sentence", "question"))
    assert data.texts == (["s"], ["q"])


def test_a_field_longer_than_csv_allows_by_default_is_read(tmp_path):
    data = read(tmp_path / "x.csv", f"sentence,label\n{'a' * 200_000},b\n")
    assert len(data.texts[0][0]) == 200_000


def test_a_test_set_may_have_no_labels(tmp_path):
    text = "sentence\na\n"
    assert read(tmp_path / "x.csv", text, needs_labels=False).labels is None
    with pytest.raises(UsageError, match="no column 'label'; found: 'sentence'"):
        read(tmp_path / "x.csv", text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", "x.csv has no rows"),
        ("x.tsv", "sentence\tlabel\n", "x.tsv has no rows"),
        ("x.jsonl", "\n", "x.jsonl has no rows"),
        ("x.csv", "text,label\na,b\n", "no column 'sentence'; found: 'text', 'label'"),
        ("x.csv", "sentence,label\na,b\nc\n", "2 columns, but 1 in row 2"),
        ("x.csv", 'sentence,label\n"a,b\n', "is not CSV"),
        ("x.tsv", "sentence\tlabel\na\tb\tc\n", "2 columns, but 3 in row 1"),
        ("x.jsonl", '{"sentence": "a"', "line 1 is not JSON"),
        ("x.jsonl", '["a"]', "line 1 must hold an object"),
        ("x.jsonl", '{"sentence": 5, "label": 1}', "no text in .* row 1. Found: 5"),
        (
            "x.jsonl",
            '{"sentence": "a", "label": 1}\n{"sentence": "a"}',
            "no label in column 'label' of row 2",
        ),
        ("x.txt", "a", "must end in .csv, .tsv or .jsonl"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path, name, text, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path / name, text)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="no file .*no.csv"):
        examples.read_examples(str(tmp_path / "no.csv"), *COLUMNS)
    path = write(tmp_path / "x.csv", "sentence,label\né,b\n", "latin-1")
    with pytest.raises(UsageError, match="x.csv is not UTF-8"):
        examples.read_examples(path, *COLUMNS)


def test_label_names_are_in_numeric_or_alphabetic_order():
    assert examples.label_names(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert examples.label_names(["b", "10", "9"]) == ["10", "9", "b"]


def test_scores_of_a_regression_are_finite_numbers():
    data = examples.Examples("dev.csv", (["x"] * 2,), ["1.5", "-2"])
    np.testing.assert_array_equal(examples.target_scores(data), [1.5, -2])
    for label in ("high", "nan"):
        data = examples.Examples("dev.csv", (["x"] * 2,), ["1", label])
        with pytest.raises(UsageError, match=f"label '{label}' in row 2"):
            examples.target_scores(data)


def test_tfds_labels_come_by_name_and_hidden_ones_are_none(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class SmallGlue(tfds.core.GeneratorBasedBuilder):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="sst2", version="1.0.0")]

        def _info(self):
            features = {
                "sentence": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                "score": tfds.features.Scalar(np.float32),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(1), "test": self._hidden()}

        def _hidden(self):
            return self._generate_examples(-1)

        def _generate_examples(self, label):
            for i in range(2):
                yield i, {"sentence": "é", "label": label, "score": 0.5}

    monkeypatch.setattr(tfds, "builder", lambda _: SmallGlue(data_dir=str(tmp_path)))
    source = "tfds:small_glue/sst2:"
    train = examples.read_examples(source + "train", *COLUMNS)
    assert (train.texts, train.labels) == ((["é", "é"],), ["positive"] * 2)
    test = examples.read_examples(source + "test", *COLUMNS, needs_labels=False)
    assert (len(test), test.labels) == (2, None)
    scores = examples.read_examples(source + "train", ("sentence",), "score")
    assert examples.target_scores(scores).tolist() == [0.5, 0.5]
    with pytest.raises(UsageError, match="tfds:small_glue/sst2:dev: Unknown split"):
        examples.read_examples(source + "dev", *COLUMNS)
