"""Scores of predictions, and the files of them, of classifiers and regressions."""

import numpy as np

from deberta_tf import files, metrics
from trainers.scalars import json_line

REGRESSION_SCORES = {
    "pearson": metrics.pearson_correlation,
    "spearman": metrics.spearman_correlation,
}
CLASS_SCORES = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "matthews": metrics.matthews_correlation,
}


def score(logits, targets):
    """{name: score}, of classes, or of a regression where there is one logit.

    Args:
        logits: float (n, classes), or (n, 1).
        targets: int (n,) class ids, or float (n,).
    """
    if logits.shape[1] == 1:
        return {
            name: function(logits[:, 0], targets)
            for name, function in REGRESSION_SCORES.items()
        }
    predictions = np.argmax(logits, axis=1)
    return {
        name: function(predictions, targets) for name, function in CLASS_SCORES.items()
    }


def write_predictions(path, logits, targets, names):
    """A JSON line an example: row from 1, prediction, scores of the classes, label."""
    lines = []
    for row, logit in enumerate(logits.astype(np.float64)):
        if names is None:
            line = {"row": row + 1, "prediction": float(logit[0])}
        else:
            shares = np.exp(logit - logit.max())
            shares = (shares / shares.sum()).round(6)
            line = {"row": row + 1, "prediction": names[int(logit.argmax())]}
            line["scores"] = dict(zip(names, shares.tolist(), strict=True))
        if targets is not None:
            label = targets[row]
            line["label"] = float(label) if names is None else names[label]
        lines.append(json_line(line))
    files.atomic_write(path, "".join(lines))


def majority(targets, names):
    """Accuracy of always saying the most frequent class of the training examples."""
    counts = np.bincount(targets["train"])
    scores = {
        split: float(np.mean(targets[split] == counts.argmax()))
        for split in ("dev", "test")
        if split in targets and targets[split] is not None
    }
    return {"label": names[int(counts.argmax())], **scores}
