"""Parts of the validation images for what is fitted to one part to be judged by another.

Legend: labels and groups are `[images]`, int64; images of one patient share a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["FOLDS", "Parts", "patient_folds"]

Ints = npt.NDArray[np.int64]
# Indices of the images to fit to, and of those to judge by.
Parts = tuple[Ints, Ints]

FOLDS = 5


def patient_folds(labels: Ints, groups: Ints, seed: int, folds: int = FOLDS) -> Iterator[Parts]:
    """Yield `folds` parts, or as many as there are patients: all others, and the part, each image in one of them.

    No patient's images are on both sides, and each class's patients are spread evenly, by the class of their first
    image. Nothing where there is a single patient: nobody else could judge.
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
