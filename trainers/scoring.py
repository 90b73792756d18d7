"""Scores by their names and over seeds, and the files of predictions."""

import statistics

import numpy as np

from deberta_tf import files, metrics
from trainers.scalars import json_line

REGRESSION_SCORES = ("pearson", "spearman")
CLASS_SCORES = ("accuracy", "macro_f1", "matthews")
_FUNCTIONS = {
    "accuracy": metrics.accuracy,
    "f1": metrics.f1,
    "macro_f1": metrics.macro_f1,
    "matthews": metrics.matthews_correlation,
    "pearson": metrics.pearson_correlation,
    "spearman": metrics.spearman_correlation,
}


def score(names, predictions, labels):
    """{name: score} of class ids, or of numbers: arrays (n,)."""
    return {name: _FUNCTIONS[name](predictions, labels) for name in names}


def write_predictions(path, answers, labels):
    """A JSON line an example: its answer, and the label where there is one.

    Args:
        path: str.
        answers: list of dicts.
        labels: list of JSON values, or None.
    """
    if labels is not None:
        answers = [
            {**answer, "label": label}
            for answer, label in zip(answers, labels, strict=True)
        ]
    files.atomic_write(path, "".join(map(json_line, answers)))


def majority(labels):
    """Accuracy of always giving the most frequent class of the training examples.

    Args:
        labels: dict from split, "train" among them, to a list of str, or None.
    """
    names, counts = np.unique(labels["train"], return_counts=True)
    most = str(names[counts.argmax()])
    return {
        "label": most,
        **{
            split: float(np.mean([label == most for label in own]))
            for split, own in labels.items()
            if split != "train" and own is not None
        },
    }


def over_seeds(found):
    """{"mean", "std"}: of the numbers in results of several seeds, by split and score.

    The standard deviation is that of a sample.
    """
    results = list(found.values())
    of_split = {
        split: [one[split] for one in results]
        for split, scores in results[0].items()
        if isinstance(scores, dict) and split != "majority_class"
    }
    return {
        name: {
            split: {
                score: float(function([one[score] for one in each]))
                for score in each[0]
            }
            for split, each in of_split.items()
        }
        for name, function in (("mean", statistics.mean), ("std", statistics.stdev))
    }


def table(means, spreads=None):
    """Lines of splits and scores, with ± their standard deviation where there is."""
    lines = []
    for split, scores in means.items():
        if not isinstance(scores, dict) or split == "majority_class":
            continue
        for name, value in scores.items():
            spread = f" ± {spreads[split][name]:.4f}" if spreads else ""
            lines.append(f"{split:<18}{name:<24}{value:>8.4f}{spread}")
    return "\n".join(lines)
