"""Scores that Keras lacks, over all predictions at once, in NumPy.

Where a score is undefined (0 / 0) it is 0.0, what guessing gets.
"""

import numpy as np


def accuracy(predictions, labels):
    """Share of predictions that equal their labels.

    Args:
        predictions, labels: arrays (n,), class ids or names.

    Returns:
        float in [0, 1].
    """
    predictions, labels = _checked(predictions, labels)
    return float(np.mean(predictions == labels))


def macro_f1(predictions, labels):
    """Mean of the classes' F1 scores, each class counting the same.

    A class that is neither predicted nor a label has no F1 and is left out; one
    that is only predicted, or only a label, has F1 = 0.

    Args:
        predictions, labels: int arrays (n,), class ids.

    Returns:
        float in [0, 1].
    """
    counts = _confusion(predictions, labels)
    hits = np.diag(counts)
    # 2 precision recall / (precision + recall), in counts
    return float(np.mean(2 * hits / (counts.sum(axis=0) + counts.sum(axis=1))))


def f1(predictions, labels, positive=1):
    """Harmonic mean of precision and recall of one class.

    Args:
        predictions, labels: int arrays (n,), class ids.
        positive: int. The class.

    Returns:
        float in [0, 1]; 0.0 where the class is neither predicted nor a label.
    """
    predictions, labels = _checked(predictions, labels)
    predicted, there = predictions == positive, labels == positive
    return harmonic_mean(np.sum(predicted & there), np.sum(predicted), np.sum(there))


def harmonic_mean(hits, num_predicted, num_there):
    """F1 of counts: right predictions, all predictions, all that is to be found."""
    counted = num_predicted + num_there
    return float(2 * hits / counted) if counted else 0.0


def matthews_correlation(predictions, labels):
    """Matthews correlation coefficient, for any number of classes.

    Args:
        predictions, labels: int arrays (n,), class ids.

    Returns:
        float in [-1, 1]; 0.0 where the predictions or the labels are all one class.

    Source: Gorodkin 2004 (the correlation of class indicators).
    """
    counts = _confusion(predictions, labels).astype(np.float64)
    total, hits = counts.sum(), np.trace(counts)
    of_label, of_prediction = counts.sum(axis=1), counts.sum(axis=0)
    return _correlation(
        hits * total - of_label @ of_prediction,
        np.sqrt(total**2 - of_label @ of_label)
        * np.sqrt(total**2 - of_prediction @ of_prediction),
    )


def pearson_correlation(predictions, labels):
    """Linear correlation.

    Args:
        predictions, labels: float arrays (n,).

    Returns:
        float in [-1, 1]; 0.0 where either is constant.
    """
    predictions, labels = _checked(predictions, labels)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x = predictions.astype(np.float64) - np.mean(predictions, dtype=np.float64)
    y = labels.astype(np.float64) - np.mean(labels, dtype=np.float64)
    return _correlation(x @ y, np.linalg.norm(x) * np.linalg.norm(y))


def spearman_correlation(predictions, labels):
    """Linear correlation of the ranks; equal values share their mean rank.

    Args:
        predictions, labels: float arrays (n,).

    Returns:
        float in [-1, 1]; 0.0 where either is constant.
    """
    predictions, labels = _checked(predictions, labels)
    return pearson_correlation(_ranks(predictions), _ranks(labels))


def _checked(predictions, labels):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape or not labels.size:
        raise ValueError(
            "predictions and labels must be non-empty (n,) arrays of equal length. "
            f"Received shapes: {predictions.shape}, {labels.shape}"
        )
    return predictions, labels


def _confusion(predictions, labels):
    """Counts (class of label, class of prediction), of the classes that occur."""
    predictions, labels = _checked(predictions, labels)
    classes, ids = np.unique(np.stack([labels, predictions]), return_inverse=True)
    labels, predictions = ids.reshape(2, -1)
    flat = np.bincount(labels * len(classes) + predictions, minlength=len(classes) ** 2)
    return flat.reshape(len(classes), len(classes))


def _ranks(values):
    _, ids, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[ids]


def _correlation(covariance, spread):
    """Their ratio; rounding must not take it beyond 1."""
    return float(np.clip(covariance / spread, -1, 1)) if spread else 0.0
