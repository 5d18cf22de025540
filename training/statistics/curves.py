"""What the plots are drawn from: ROC, precision–recall, reliability and risk–coverage curves.

Curves are thinned to what an eye can tell apart, so that they fit into a report's JSON.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from plurum.errors import needs_extra
from plurum.training.statistics.metrics import BINS, Answers, confidence_bins

__all__ = ["Bin", "Curve", "precision_recall_curve", "reliability_bins", "risk_coverage_curve", "roc_curve"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_POINTS = 200


class Curve(BaseModel):
    """Points to be joined.

    Attributes:
        x: Ascending or descending.
        y: As many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: tuple[float, ...]
    y: tuple[float, ...]


class Bin(BaseModel):
    """Answers of like confidence.

    Attributes:
        low: Lower end of the bin; not in it.
        high: Upper end; in it.
        images: How many answers.
        confidence: Their mean confidence; None where there are none.
        accuracy: The share of right ones; likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def roc_curve(probability: Floats, positive: Bools) -> Curve | None:
    """Return false-positive rate → true-positive rate of one class; None without both kinds of images."""
    if positive.all() or not positive.any():
        return None
    with needs_extra("training"):
        from sklearn import metrics
    fpr, tpr, _ = metrics.roc_curve(positive, probability)
    return _thinned(fpr, tpr)


def precision_recall_curve(probability: Floats, positive: Bools) -> Curve | None:
    """Return recall → precision of one class; None without an image of it."""
    if not positive.any():
        return None
    with needs_extra("training"):
        from sklearn import metrics
    precision, recall, _ = metrics.precision_recall_curve(positive, probability)
    return _thinned(recall[::-1], precision[::-1])


def reliability_bins(answers: Answers) -> tuple[Bin, ...]:
    """Return the answers by their confidence in `BINS` bins of equal width; what ECE is the mean gap of."""
    confidence = answers.confidence
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
                accuracy=float(1 - answers.wrong[inside].mean()) if some else None,
            )
        )
    return tuple(bins)


def risk_coverage_curve(answers: Answers, weights: Floats | None = None) -> Curve:
    """Return the share of images answered, surest first → the share of wrong answers among those answered.

    One point per distinct confidence, from the surest on.

    Args:
        answers: To the images.
        weights: `[images]`, as how many images each counts; None for one each.
    """
    weights = np.ones(len(answers.labels)) if weights is None else weights
    confidence = answers.confidence
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    answered = np.cumsum(weights[order])[ends]
    wrong = np.cumsum((weights * answers.wrong)[order])[ends]
    return _thinned(answered / answered[-1], wrong / answered)


def _thinned(x: Floats, y: Floats) -> Curve:
    """Return at most `_POINTS` of the points, evenly along the way: steep stretches keep theirs."""
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0, way[-1], _POINTS)
    kept = np.unique(np.concatenate([[0, len(x) - 1], np.searchsorted(way, wanted).clip(0, len(x) - 1)]))
    return Curve(x=tuple(np.round(x[kept], 5).tolist()), y=tuple(np.round(y[kept], 5).tolist()))
