"""Intervals over draws of training images and over test images."""

from __future__ import annotations

import numpy as np

from plurum.figures import Estimate
from plurum.predictions.arrays import Floats
from plurum.training.statistics.bootstrap import LEVEL

__all__ = ["estimate_over_draws"]


def estimate_over_draws(differences: Floats) -> Estimate:
    """Return the mean of paired differences, `[draws, images]`, with a 95 % interval over draws and images.

    The variance of the mean is that over images, of the mean of all draws, plus that over draws, of the mean of all
    images. What depends on both is counted twice, so the interval is too wide rather than too narrow. It is Student's t
    with as many degrees of freedom as the draws have.
    """
    from scipy.stats import t as student

    draws, images = differences.shape
    variance = differences.mean(axis=0).var(ddof=1) / images + differences.mean(axis=1).var(ddof=1) / draws
    half = float(student.ppf((1 + LEVEL) / 2, draws - 1) * np.sqrt(variance))
    mean = float(differences.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half)
