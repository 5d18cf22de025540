"""Figures with their 95 % intervals: percentiles of bootstrap draws, or closed forms for independent images."""

from __future__ import annotations

import math

import numpy as np

from plurum.figures import Estimate
from plurum.predictions.arrays import Floats, Ints
from plurum.training.statistics.bootstrap import LEVEL, Bootstrap, mean_interval, percentile_interval

__all__ = ["Estimate", "estimate_from_draws", "estimate_mean", "number_or_none", "wilson_interval"]


def estimate_from_draws(value: float, draws: Ints | Floats) -> Estimate:
    """Return a figure with the percentile interval of its bootstrap draws, `[draws]`; NaN becomes None."""
    low, high = percentile_interval(np.asarray(draws, dtype=np.float64))
    return Estimate(value=number_or_none(value), low=number_or_none(low), high=number_or_none(high))


def estimate_mean(values: Floats, bootstrap: Bootstrap) -> Estimate:
    """Return the mean of each image's value, `[images]`, with its bootstrap interval."""
    low, high = mean_interval(values, bootstrap)
    return Estimate(value=float(values.mean()), low=low, high=high)


def number_or_none(value: float) -> float | None:
    """Return the number, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def wilson_interval(hits: float, total: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927); NaN without observations."""
    from scipy.stats import norm

    if not total:
        return float("nan"), float("nan")
    z = float(norm.ppf((1 + level) / 2))
    share, spread = hits / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    # Rounding could exclude the share itself at 0 and 1.
    return float(np.clip(centre - half, 0.0, share)), float(np.clip(centre + half, share, 1.0))
