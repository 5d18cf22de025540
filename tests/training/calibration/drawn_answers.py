"""Drawn probabilities with labels, for tests of corrections."""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.voting import softmax

__all__ = ["draw"]


def draw(images: int, classes: int, seed: int = 0) -> tuple[Floats, Ints]:
    """Draw probabilities that are too certain, and labels of other frequencies."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(images, classes))
    true = softmax(0.6 * logits + np.linspace(-0.5, 0.5, classes))
    labels = (true.cumsum(axis=1) < rng.uniform(size=(images, 1))).sum(axis=1)
    return softmax(logits), labels
