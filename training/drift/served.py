"""Counts of a server's predictions, in the order of an ensemble's classes and of its baseline's bins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plurum.errors import ServerError
from plurum.spec import Ensemble
from plurum.training.drift.detect import AnswerCounts, read_baseline

__all__ = ["counts_from_page"]


def counts_from_page(
    ensemble: Ensemble, names: tuple[str, ...], labels: Mapping[str, int], confidence: Mapping[float, int], reviews: int
) -> AnswerCounts:
    """Return the counts of a server's predictions.

    Args:
        ensemble: Ensemble that the server serves.
        names: Addresses of the server's metrics.
        labels: Number of predictions by label.
        confidence: Number of predictions with at most a confidence, by that limit; the last is infinite.
        reviews: Number of predictions that need review.

    Raises:
        MetadataError: the ensemble has no baseline.
        ServerError: labels or limits are not those of the ensemble.
    """
    limits = (*read_baseline(ensemble, "ensemble.json").confidence_limits, float("inf"))
    if set(labels) - set(ensemble.classes) or set(confidence) - set(limits):
        raise ServerError(f"{names[0]}: expected the classes and limits of confidence of the ensemble, got others.")
    upto = [confidence.get(limit, 0) for limit in limits]
    return AnswerCounts(
        names=names,
        labels=np.array([labels.get(name, 0) for name in ensemble.classes], dtype=np.int64),
        # The server may count while its page is read.
        confidence=np.maximum(np.diff(np.array([0, *upto], dtype=np.int64)), 0),
        reviews=reviews,
    )
