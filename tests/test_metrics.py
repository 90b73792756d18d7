"""Scores against scikit-learn and scipy, and where those are undefined."""

import numpy as np
import pytest

from deberta_tf import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")
scipy_stats = pytest.importorskip("scipy.stats")


def random_classes(num_classes, size=200):
    draw = np.random.default_rng(num_classes)
    labels = draw.integers(num_classes, size=size)
    wrong = draw.integers(num_classes, size=size)
    return np.where(draw.random(size) < 0.6, labels, wrong), labels


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_class_scores_equal_scikit_learn(num_classes):
    predictions, labels = random_classes(num_classes)
    assert metrics.accuracy(predictions, labels) == pytest.approx(
        sklearn_metrics.accuracy_score(labels, predictions)
    )
    assert metrics.macro_f1(predictions, labels) == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro")
    )
    assert metrics.matthews_correlation(predictions, labels) == pytest.approx(
        sklearn_metrics.matthews_corrcoef(labels, predictions)
    )


@pytest.mark.parametrize("positive", [0, 1])
def test_f1_of_a_class_equals_scikit_learn(positive):
    for predictions, labels in (
        random_classes(2),
        ([0, 0, 0], [0, 0, 0]),
        ([1, 1, 1], [0, 0, 0]),
        ([0, 0, 0], [1, 1, 1]),
    ):
        assert metrics.f1(predictions, labels, positive) == pytest.approx(
            sklearn_metrics.f1_score(
                labels, predictions, pos_label=positive, zero_division=0.0
            )
        )


def test_correlations_equal_scipy_with_ties():
    draw = np.random.default_rng(0)
    labels = np.round(draw.uniform(0, 5, 300) * 5) / 5
    predictions = (labels + draw.normal(0, 1, 300)).round(1).astype(np.float32)
    # 1e-6: float32 predictions, whose mean scipy takes in float32.
    assert metrics.pearson_correlation(predictions, labels) == pytest.approx(
        scipy_stats.pearsonr(predictions, labels).statistic, abs=1e-6
    )
    assert metrics.spearman_correlation(predictions, labels) == pytest.approx(
        scipy_stats.spearmanr(predictions, labels).statistic, abs=1e-12
    )


def test_a_class_only_predicted_or_only_a_label_has_f1_zero():
    assert metrics.macro_f1([0, 0, 2], [0, 0, 1]) == pytest.approx(1 / 3)


def test_one_class_alone_is_right_but_uncorrelated():
    ones = np.ones(5, int)
    assert metrics.accuracy(ones, ones) == 1.0
    assert metrics.macro_f1(ones, ones) == 1.0
    assert metrics.matthews_correlation(ones, ones) == 0.0
    assert metrics.matthews_correlation(ones, [0, 1, 0, 1, 1]) == 0.0


def test_constant_predictions_do_not_correlate():
    labels = np.arange(6.0)
    constant = np.full(6, 0.1)
    assert metrics.pearson_correlation(constant, labels) == 0.0
    assert metrics.spearman_correlation(constant, labels) == 0.0
    assert metrics.pearson_correlation(labels, constant) == 0.0


def test_a_large_offset_does_not_hide_a_correlation():
    labels = np.arange(8, dtype=np.float32)
    assert metrics.pearson_correlation(1e6 + labels, labels) == pytest.approx(1.0)


def test_a_score_of_any_rising_function_has_rank_correlation_one():
    labels = np.arange(1.0, 9.0)
    assert metrics.spearman_correlation(labels**5, labels) == pytest.approx(1.0)
    assert metrics.spearman_correlation(-(labels**5), labels) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("predictions", "labels"), [([], []), ([1, 2], [1]), ([[1]], [[1]])]
)
def test_empty_or_unequal_arrays_are_refused(predictions, labels):
    with pytest.raises(ValueError, match="non-empty"):
        metrics.accuracy(predictions, labels)
