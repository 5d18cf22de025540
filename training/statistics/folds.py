"""Folds of the validation images: fit to some of them, and evaluate on the others.

Legend: labels and groups are `[images]`, int64; images of one patient share a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plurum.predictions.arrays import Ints

__all__ = ["FOLDS", "Parts", "patient_folds"]

# Indices of the images to fit to, and of those to evaluate on.
Parts = tuple[Ints, Ints]

FOLDS = 5


def patient_folds(labels: Ints, groups: Ints, seed: int, folds: int = FOLDS) -> Iterator[Parts]:
    """Yield `folds` pairs of images to fit to and images to evaluate on; every image is evaluated once.

    No patient is on both sides. Each class's patients are spread evenly, by the class of their first image. There are
    at most as many folds as patients, and none for a single patient.
    """
    _, first, patients = np.unique(groups, return_index=True, return_inverse=True)
    folds = min(folds, len(first))
    if folds < 2:
        return
    drawn = np.random.default_rng(seed).permutation(len(first))
    part = np.empty(len(first), dtype=np.int64)
    part[np.lexsort((drawn, labels[first]))] = np.arange(len(first)) % folds
    for number in range(folds):
        yield np.flatnonzero(part[patients] != number), np.flatnonzero(part[patients] == number)
