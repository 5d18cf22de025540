"""Figures of decisions for a positive class, with bootstrap intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plurum.figures import DecisionFigures
from plurum.predictions.arrays import Bools, Floats
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.estimates import Estimate, estimate_from_draws, wilson_interval

__all__ = ["DecisionFigures", "decision_figures", "estimate_fractions"]


def decision_figures(
    is_positive: Bools, decided: Bools, kept: Bools, bootstrap: Bootstrap, weights: Floats | None = None
) -> DecisionFigures:
    """Return the figures of some decisions.

    Args:
        is_positive: Mask of the positive class, `[decisions]`.
        decided: Mask of positive decisions, `[decisions]`.
        kept: Mask of the decisions to use, such as those without review, `[decisions]`.
        bootstrap: Bootstrap over the patients of all decisions.
        weights: Weight of each decision, `[decisions]`; 1 by default.
    """
    correct = is_positive == decided
    among = [mask & kept for mask in (is_positive, ~is_positive, decided, ~decided)]
    found = estimate_fractions([correct] * 4, among, bootstrap, weights)
    names = ("sensitivity", "specificity", "ppv", "npv")
    return DecisionFigures(number=int(kept.sum()), **dict(zip(names, found, strict=True)))


def estimate_fractions(
    of: Sequence[Bools], among: Sequence[Bools], bootstrap: Bootstrap, weights: Floats | None = None
) -> list[Estimate]:
    """Return, for each pair of masks `[images]`, the fraction of the second mask's images in the first."""
    each = np.ones(len(bootstrap.groups)) if weights is None else weights
    part = np.array([one & other for one, other in zip(of, among, strict=True)]) * each
    whole = np.array(among) * each
    with np.errstate(invalid="ignore"):
        plain = part.sum(axis=1) / whole.sum(axis=1)
        drawn = np.concatenate([(part @ counts) / (whole @ counts) for counts in bootstrap.blocks()], axis=1)
    return [
        _extreme_fraction(value, bootstrap, mask) if value in {0.0, 1.0} else estimate_from_draws(value, draws)
        for value, draws, mask in zip(plain.tolist(), drawn, among, strict=True)
    ]


def _extreme_fraction(value: float, bootstrap: Bootstrap, among: Bools) -> Estimate:
    """Return a fraction of 0 or 1, whose draws don't vary, with Wilson's interval: each patient is one observation."""
    patients = len(np.unique(bootstrap.groups[among]))
    low, high = wilson_interval(value * patients, patients)
    return Estimate(value=value, low=low, high=high)
