"""Decision curves: net benefit of deciding by a predicted probability (Vickers & Elkin 2006).

At the threshold probability t, one false positive costs as much as t / (1 - t) true positives are worth. Net benefit is
the true positives' fraction of all images, minus the false positives' fraction times t / (1 - t).
"""

from __future__ import annotations

import numpy as np

from plurum.figures import DecisionCurve
from plurum.predictions.arrays import Bools, Floats
from plurum.training.statistics.bootstrap import Bootstrap, percentile_interval

__all__ = ["THRESHOLDS", "DecisionCurve", "decision_curve", "net_benefit"]

THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))


def net_benefit(sensitivity: Floats, specificity: Floats, prevalence: Floats, thresholds: Floats) -> Floats:
    """Return the net benefit at each threshold probability."""
    odds = thresholds / (1 - thresholds)
    return np.asarray(sensitivity * prevalence - (1 - specificity) * (1 - prevalence) * odds)


def decision_curve(
    probabilities: Floats, true: Bools, bootstrap: Bootstrap, prevalence: float | None = None
) -> DecisionCurve | None:
    """Return the decision curve of a class's probabilities; None without positives or without negatives.

    Args:
        probabilities: Probability of the positive class, `[images]`.
        true: Images of the positive class, `[images]`.
        bootstrap: Draws over the patients of these images.
        prevalence: Fraction of positives where the ensemble serves; by default that of the images.
    """
    if not true.any() or true.all():
        return None
    thresholds = np.array(THRESHOLDS)
    decided = probabilities[:, None] >= thresholds
    hits, alarms = (decided & true[:, None]).T.astype(np.float32), (decided & ~true[:, None]).T.astype(np.float32)
    positive = true.astype(np.float32)

    def benefit(counts: Floats) -> Floats:
        positives = (positive @ counts).astype(np.float64)
        negatives = counts.sum(axis=0) - positives
        share = positives / (positives + negatives) if prevalence is None else np.full_like(positives, prevalence)
        with np.errstate(divide="ignore", invalid="ignore"):
            return net_benefit(hits @ counts / positives, 1 - alarms @ counts / negatives, share, thresholds[:, None])

    plain = benefit(np.ones((len(true), 1)))[:, 0]
    drawn = np.concatenate([benefit(np.asarray(block, dtype=np.float64)) for block in bootstrap.blocks()], axis=1)
    low, high = zip(*(percentile_interval(draws) for draws in drawn), strict=True)
    share = float(true.mean()) if prevalence is None else prevalence
    whole = net_benefit(np.ones(1), np.zeros(1), np.array([share]), thresholds)
    return DecisionCurve(
        prevalence=share,
        thresholds=THRESHOLDS,
        net_benefit=tuple(plain.tolist()),
        low=low,
        high=high,
        treat_all=tuple(whole.tolist()),
    )
