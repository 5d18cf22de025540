"""ROC, precision–recall, reliability and risk–coverage curves, and rates by threshold, for plots.

Curves are thinned to a visually sufficient number of points, which keeps the report's JSON small.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from plurum.errors import needs_extra
from plurum.predictions.arrays import Bools, Floats
from plurum.predictions.scores import BINS, confidence_bins
from plurum.spec import Metadata
from plurum.training.statistics.metrics import LabelledPredictions

__all__ = [
    "Bin",
    "Curve",
    "precision_recall_curve",
    "rates_by_threshold",
    "reliability_bins",
    "risk_coverage_curve",
    "roc_curve",
]


_POINTS = 200


class Curve(Metadata):
    """Points of a curve.

    Attributes:
        x: Positions on the horizontal axis, ascending or descending.
        y: Positions on the vertical axis, one per value of `x`.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]


class Bin(Metadata):
    """Predictions of similar confidence.

    Attributes:
        low: Lower end of the bin, exclusive.
        high: Upper end of the bin, inclusive.
        images: Number of predictions in the bin.
        confidence: Mean confidence of these predictions; None if the bin is empty.
        accuracy: Accuracy of these predictions; None if the bin is empty.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def roc_curve(probability: Floats, positive: Bools) -> Curve | None:
    """Return the ROC curve of one class; None unless there are positive and negative images."""
    if positive.all() or not positive.any():
        return None
    with needs_extra("training"):
        from sklearn import metrics
    fpr, tpr, _ = metrics.roc_curve(positive, probability)
    return _thin(fpr, tpr)


def precision_recall_curve(probability: Floats, positive: Bools) -> Curve | None:
    """Return the precision–recall curve of one class; None without a positive image."""
    if not positive.any():
        return None
    with needs_extra("training"):
        from sklearn import metrics
    precision, recall, _ = metrics.precision_recall_curve(positive, probability)
    return _thin(recall[::-1], precision[::-1])


def rates_by_threshold(
    probability: Floats, positive: Bools, weights: Floats | None = None
) -> dict[Literal["sensitivity", "specificity"], Curve]:
    """Return the threshold → sensitivity and specificity of deciding for a class from this probability on.

    A rate at a threshold also holds below it, down to the threshold before.

    Args:
        probability: Probability of the class, `[images]`.
        positive: Mask of images of the class, `[images]`; some are, and some are not.
        weights: Weight of each image, `[images]`; 1 by default.
    """
    weights = np.ones(len(probability)) if weights is None else weights
    thresholds = np.unique(np.concatenate([[0.0], probability, [1.0]]))
    rates = []
    for side in (positive, ~positive):
        order = np.argsort(probability[side], kind="stable")
        below = np.searchsorted(probability[side][order], thresholds, side="left")
        sums = np.concatenate([[0.0], np.cumsum(weights[side][order])])
        rates.append(sums[below] / sums[-1])
    return {"sensitivity": _thin(thresholds, 1 - rates[0]), "specificity": _thin(thresholds, rates[1])}


def reliability_bins(predictions: LabelledPredictions) -> tuple[Bin, ...]:
    """Return the predictions by confidence in `BINS` bins of equal width; ECE is their mean gap."""
    confidence = predictions.confidence
    found = confidence_bins(confidence)
    bins = []
    for index in range(BINS):
        inside = found == index
        some = bool(inside.any())
        bins.append(
            Bin(
                low=index / BINS,
                high=(index + 1) / BINS,
                images=int(inside.sum()),
                confidence=float(confidence[inside].mean()) if some else None,
                accuracy=float(1 - predictions.wrong[inside].mean()) if some else None,
            )
        )
    return tuple(bins)


def risk_coverage_curve(predictions: LabelledPredictions, weights: Floats | None = None) -> Curve:
    """Return coverage → risk: the fraction of images kept, most confident first, → the error rate among them.

    The curve has one point per distinct confidence.

    Args:
        predictions: Predictions for the images.
        weights: Weight of each image, `[images]`; 1 by default.
    """
    weights = np.ones(len(predictions.labels)) if weights is None else weights
    confidence = predictions.confidence
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    answered = np.cumsum(weights[order])[ends]
    wrong = np.cumsum((weights * predictions.wrong)[order])[ends]
    return _thin(answered / answered[-1], wrong / answered)


def _thin(x: Floats, y: Floats) -> Curve:
    """Return at most `_POINTS` of the points, evenly spaced along the curve's length."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    targets = np.linspace(0, length[-1], _POINTS)
    kept = np.unique(np.concatenate([[0, len(x) - 1], np.searchsorted(length, targets).clip(0, len(x) - 1)]))
    return Curve(x=tuple(np.round(x[kept], 5).tolist()), y=tuple(np.round(y[kept], 5).tolist()))
