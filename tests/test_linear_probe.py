"""tools/linear_probe.py: what frozen features hold."""

import csv
import json

import numpy as np
import pytest

from deberta_tf.files import UsageError
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import make_backbone, randomize
from tools import linear_probe


@pytest.fixture
def preprocessor(sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    return DebertaTextClassifierPreprocessor(tokenizer, sequence_length=16)


@pytest.fixture
def preset(tmp_path, preprocessor):
    backbone = make_backbone()
    randomize(backbone)
    classifier = DebertaTextClassifier(backbone, 2, preprocessor=preprocessor)
    classifier.save_to_preset(str(tmp_path / "preset"))
    return str(tmp_path / "preset")


def write_csv(path, rows, header=("text", "label")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_features_are_the_means_over_the_tokens_alone(preprocessor):
    backbone = make_backbone()
    randomize(backbone)
    texts = ["the jury painted that song.", "nobody", "a grey cat"]
    found = linear_probe.mean_states(backbone, preprocessor, texts, batch_size=2)
    for text, mean in zip(texts, found, strict=True):
        inputs = preprocessor([text])
        states = np.asarray(backbone(inputs))[0]
        count = int(np.sum(inputs["padding_mask"]))
        assert 2 < count < 16
        # Rows of one batch share their matrix products: float32's rounding.
        np.testing.assert_allclose(mean, states[:count].mean(axis=0), atol=1e-5)


def test_features_that_tell_the_label_are_found_out_and_noise_is_not():
    rng = np.random.default_rng(0)
    labels = np.array(["no", "yes"])[rng.integers(0, 2, 600)]
    features = rng.normal(size=(600, 8))
    noise = linear_probe.probe(
        features[:400], labels[:400], features[400:], labels[400:]
    )
    features[:, 3] += 4.0 * (labels == "yes")
    told = linear_probe.probe(
        features[:400], labels[:400], features[400:], labels[400:]
    )
    assert told["accuracy"] > 0.95
    assert noise["accuracy"] < 0.62


def test_the_most_frequent_class_is_that_of_training():
    features = np.eye(5)
    scores = linear_probe.probe(
        features, ["a", "a", "a", "b", "b"], features[:4], ["b", "b", "b", "a"]
    )
    assert scores["most_frequent_class"] == 0.25


def test_the_command_writes_the_scores(tmp_path, preset, sentences):
    rows = [(text, str("cat" in text)) for text in sentences]
    train = write_csv(tmp_path / "train.csv", rows[:100])
    test = write_csv(tmp_path / "test.csv", rows[100:150])
    output = tmp_path / "probe.json"
    linear_probe.main(
        [f"--preset={preset}", f"--train={train}", f"--test={test}"]
        + [f"--output={output}", "--sequence_length=16"]
    )
    scores = json.loads(output.read_text())
    shares = [label == "False" for _, label in rows[100:150]]
    assert scores["most_frequent_class"] == pytest.approx(np.mean(shares))
    assert 0.5 < scores["accuracy"] <= 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"rows": []}, "train.csv has no rows"),
        ({"rows": [("a", "b")], "header": ("text", "class")}, "no column 'label'; f"),
        ({"rows": [("a", "x"), ("b", "x")]}, r"two labels or more. Found: \['x'\]"),
        ({"rows": [("a", "x"), ("b", "y")]}, "test.csv has the label 'z', which"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, train, message):
    train = write_csv(tmp_path / "train.csv", **train)
    test = write_csv(tmp_path / "test.csv", [("a", "z")])
    with pytest.raises(UsageError, match=message):
        linear_probe.main(
            ["--preset=none", "--output=none", f"--train={train}", f"--test={test}"]
        )


def test_wrong_flags_are_refused_by_name():
    flags = ["--preset=p", "--train=a", "--test=b", "--output=c"]
    with pytest.raises(UsageError, match="--sequence_length must be at least 3; got 2"):
        linear_probe.main([*flags, "--sequence_length=2"])
