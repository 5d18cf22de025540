"""Curves, against cases computed by hand and against the areas below them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from plurum.predictions.scores import BINS
from plurum.training.statistics.curves import (
    precision_recall_curve,
    rates_by_threshold,
    reliability_bins,
    risk_coverage_curve,
    roc_curve,
)
from plurum.training.statistics.metrics import LabelledPredictions


def predictions(right: list[int], confidence: list[float]) -> LabelledPredictions:
    """Return two-class predictions; 1 marks a correct one, 0 a wrong one."""
    sure = np.array(confidence)
    labels = np.where(np.array(right) == 1, 0, 1)
    return LabelledPredictions(np.column_stack([sure, 1 - sure]), np.zeros(len(right), dtype=np.int64), labels)


def test_risk_over_coverage_by_hand() -> None:
    # Unsorted, with two equal confidences, which form one point.
    curve = risk_coverage_curve(predictions([1, 0, 1, 0], [0.9, 0.8, 0.8, 0.7]))
    assert curve.x == (0.25, 0.75, 1.0)
    np.testing.assert_allclose(curve.y, [0, 1 / 3, 1 / 2], atol=1e-5)
    assert risk_coverage_curve(predictions([0, 1], [0.7, 0.9])).y == (0.0, 0.5)


def test_precision_over_recall_by_hand() -> None:
    curve = precision_recall_curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert curve is not None
    points = list(zip(curve.x, curve.y, strict=True))
    assert (curve.x[0], curve.y[0]) == (0, 1)
    assert (0.5, 1.0) in points
    assert (1.0, round(2 / 3, 5)) in points


def test_thin_curves_keep_their_areas() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.3
    probability = 1 / (1 + np.exp(-rng.normal(2.0 * positive - 1, 1)))
    roc, found = roc_curve(probability, positive), precision_recall_curve(probability, positive)
    assert roc is not None
    assert found is not None
    assert max(len(roc.x), len(found.x)) <= 210
    assert metrics.auc(roc.x, roc.y) == pytest.approx(metrics.roc_auc_score(positive, probability), abs=2e-3)
    area = metrics.average_precision_score(positive, probability)
    assert metrics.auc(found.x, found.y) == pytest.approx(area, abs=5e-3)


def test_without_both_kinds_of_images_there_is_no_curve() -> None:
    probability = np.array([0.2, 0.8])
    assert roc_curve(probability, np.array([True, True])) is None
    assert roc_curve(probability, np.array([False, False])) is None
    assert precision_recall_curve(probability, np.array([False, False])) is None
    assert precision_recall_curve(probability, np.array([True, True])) is not None


def test_bins_by_hand() -> None:
    bins = reliability_bins(predictions([1, 0, 1, 1], [0.9, 0.91, 0.61, 0.62]))
    assert len(bins) == BINS
    filled = {index: found for index, found in enumerate(bins) if found.images}
    # 0.9 to 0.91 lie in (13/15, 14/15], 0.61 and 0.62 in (9/15, 10/15].
    assert set(filled) == {9, 13}
    assert (filled[13].images, filled[13].accuracy) == (2, 0.5)
    assert filled[13].confidence == pytest.approx(0.905)
    assert (filled[9].accuracy, filled[9].low) == (1.0, 0.6)
    assert bins[0].accuracy is None


@pytest.mark.parametrize("is_weighted", [False, True])
def test_rates_by_threshold_are_those_of_scikit_learn(is_weighted: bool) -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that some probabilities are equal.
    probability = rng.random(100).round(2)
    positive = rng.random(100) < probability
    weights = rng.random(100) if is_weighted else None
    curves = rates_by_threshold(probability, positive, weights)
    for name, label in (("sensitivity", True), ("specificity", False)):
        curve = curves[name]  # type: ignore[index]
        assert (curve.x[0], curve.x[-1]) == (0.0, 1.0)
        for threshold, rate in zip(curve.x, curve.y, strict=True):
            decided = probability >= threshold
            expected = metrics.recall_score(positive, decided, pos_label=label, sample_weight=weights)
            assert rate == pytest.approx(expected, abs=1e-5)
