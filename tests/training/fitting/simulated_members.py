"""Simulated probabilities of members, with labels."""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.voting import softmax

__all__ = ["resembling", "simulated"]


def simulated(images: int, skills: tuple[float, ...], seed: int = 0, classes: int = 3) -> tuple[Floats, Ints]:
    """Simulate members `[images, members, classes]` with independent noise, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, len(skills), classes))
    for member, skill in enumerate(skills):
        logits[np.arange(images), member, labels] += skill
    return softmax(logits), labels


def resembling(images: int, skills: tuple[float, ...], classes: int, seed: int) -> tuple[Floats, Ints]:
    """Simulate members with partly shared noise, as when trained on the same images, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = 0.7 * rng.normal(size=(images, 1, classes)) + rng.normal(size=(images, len(skills), classes))
    logits[np.arange(images), :, labels] += np.array(skills)
    return softmax(2 * logits), labels
