"""Scores frozen features: a linear classifier on what an encoder makes of texts.

    python -m tools.linear_probe --preset pretrained/preset --train train.csv \\
        --test test.csv --output probe.json

The features of a text are the means of its last hidden states; logistic regression on
them is all that learns. Prints, and writes, the accuracy on the test texts beside that
of their most frequent class in training.
"""

import collections
import csv
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tasks import DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import load_tokenizer

COLUMNS = ("text", "label")


def main(argv=None):
    options = _parse(argv)
    splits = {name: read_labelled(getattr(options, name)) for name in ("train", "test")}
    _check_classes(options, splits)
    backbone = DebertaBackbone.from_preset(options.preset)
    preprocessor = DebertaTextClassifierPreprocessor(
        load_tokenizer(options.preset), sequence_length=options.sequence_length
    )
    encoded = {
        name: (mean_states(backbone, preprocessor, texts, options.batch_size), labels)
        for name, (texts, labels) in splits.items()
    }
    scores = probe(*encoded["train"], *encoded["test"])
    files.write_json(options.output, scores)
    print(
        f"test accuracy {scores['accuracy']:.4f}, "
        f"most frequent class {scores['most_frequent_class']:.4f}"
    )


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, help="what from_preset takes")
    for split in ("train", "test"):
        parser.add_argument(
            f"--{split}", required=True, help="CSV file with columns text and label"
        )
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument(
        "--sequence_length", type=int, default=128, help="tokens kept (%(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="texts encoded at once (%(default)s)"
    )
    options = parser.parse_args(argv)
    for name, least in (("sequence_length", 3), ("batch_size", 1)):
        if getattr(options, name) < least:
            raise files.UsageError(
                f"--{name} must be at least {least}; got {getattr(options, name)}"
            )
    return options


def read_labelled(path):
    """(texts, labels), lists of str, of a CSV file.

    Raises:
        UsageError: if it has no rows, or lacks a column.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    for name in COLUMNS:
        if name not in (reader.fieldnames or ()):
            found = ", ".join(map(repr, reader.fieldnames or ())) or "no header"
            raise files.UsageError(f"{path} has no column {name!r}; found: {found}")
    if not rows:
        raise files.UsageError(f"{path} has no rows")
    return tuple([row[name] or "" for row in rows] for name in COLUMNS)


def _check_classes(options, splits):
    known = set(splits["train"][1])
    if len(known) < 2:
        raise files.UsageError(
            f"{options.train} must have two labels or more. Found: {sorted(known)}"
        )
    unknown = sorted(set(splits["test"][1]) - known)
    if unknown:
        raise files.UsageError(
            f"{options.test} has the label {unknown[0]!r}, which {options.train} lacks"
        )


def mean_states(backbone, preprocessor, texts, batch_size):
    """Means of the last hidden states over the tokens of each text.

    Args:
        backbone: `DebertaBackbone`.
        preprocessor: callable from a list of str to the inputs of the backbone.
        texts: list of str.
        batch_size: int.

    Returns:
        float32 (texts, hidden).
    """
    means = []
    for start in range(0, len(texts), batch_size):
        inputs = preprocessor(texts[start : start + batch_size])
        states = np.asarray(backbone.predict_on_batch(inputs), np.float32)
        mask = np.asarray(inputs["padding_mask"], np.float32)[..., None]
        means.append((states * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(means)


def probe(train_features, train_labels, test_features, test_labels):
    """Scores of a linear classifier.

    Args:
        train_features, test_features: float (examples, width).
        train_labels, test_labels: lists of str.

    Returns:
        dict of `accuracy` on the test examples, and that of always giving the
        `most_frequent_class` of the training examples.

    Raises:
        UsageError: if the features are such that the classifier does not converge.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            classifier.fit(train_features, train_labels)
        except ConvergenceWarning as warning:
            raise files.UsageError(f"the linear classifier: {warning}") from None
    ((most_frequent, _),) = collections.Counter(train_labels).most_common(1)
    return {
        "accuracy": float(classifier.score(test_features, test_labels)),
        "most_frequent_class": float(np.mean(np.array(test_labels) == most_frequent)),
    }


if __name__ == "__main__":
    files.run_command(main)
