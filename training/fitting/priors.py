"""Correct a vote for class frequencies in service that differ from those of the validation images, with NumPy.

The method assumes label shift: images of a class look the same, and only the class frequencies differ. This holds if a
hospital sees more patients of one kind. It does not hold for another scanner or stain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plurum.errors import DataError, SettingsError
from plurum.predictions.arrays import Floats, Ints

__all__ = ["class_frequencies", "estimate_frequencies", "frequencies_from_prior", "prior_ratio"]


_MAX_ROUNDS = 10_000


def class_frequencies(labels: Ints, classes: int) -> Floats:
    """Return the frequency of each class in `labels` `[images]`, `[classes]`."""
    return np.bincount(labels, minlength=classes) / len(labels)


def frequencies_from_prior(prior: Mapping[str, float], classes: Sequence[str]) -> Floats:
    """Return the class frequencies of `prior`, in the order of `classes`.

    Raises:
        SettingsError: `prior` names an unknown class, or lacks one.
    """
    unknown = [name for name in prior if name not in classes]
    missing = [name for name in classes if name not in prior]
    if unknown:
        raise SettingsError(f"--prior: unknown class {', '.join(unknown)}; available: {', '.join(classes)}")
    if missing:
        raise SettingsError(f"--prior: expected a frequency for each class, got none for {', '.join(missing)}")
    return np.array([prior[name] for name in classes])


def prior_ratio(shares: Floats, fitted: Floats, classes: Sequence[str]) -> tuple[float, ...]:
    """Return the ratio of each class's frequency in `shares` to that in `fitted`, both `[classes]`.

    Raises:
        DataError: a class has no validation image, so its frequency can't be corrected.
    """
    if not fitted.all():
        name = classes[int(np.argmin(fitted))]
        raise DataError(f"class {name!r} has no validation image, so its frequency can't be corrected")
    return tuple((shares / fitted).tolist())


def estimate_frequencies(probabilities: Floats, fitted: Floats) -> Floats:
    """Return class frequencies `[classes]` of unlabelled images, estimated from the ensemble's predictions.

    Maximum likelihood by expectation-maximisation (Saerens, Latinne & Decaestecker 2002, 2.3). It needs calibrated
    probabilities (Alexandari, Kundaje & Shrikumar, arXiv 1901.06852), here those of the vote with temperature. Every
    class gets the frequency of at least half an image, because no sample proves that a class is absent.

    Args:
        probabilities: Uncorrected probabilities, `[images, classes]`.
        fitted: Class frequencies of the validation images, `[classes]`; none is 0.
    """
    shares = fitted
    for _ in range(_MAX_ROUNDS):
        weighed = probabilities * (shares / fitted)
        updated = (weighed / weighed.sum(axis=1, keepdims=True)).mean(axis=0)
        change = np.abs(updated - shares).max()
        shares = updated
        if change < 1e-9:
            break
    shares = np.maximum(shares, 0.5 / len(probabilities))
    return np.asarray(shares / shares.sum())
