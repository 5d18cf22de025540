"""How frequent classes are where the ensemble will be used, when that is not as among its validation images. NumPy.

What is assumed is label shift: a class looks as before, and only its share is another. It holds where a hospital sees
more of one kind of patient; it does not where another scanner or stain makes the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, SettingsError

__all__ = ["estimated_shares", "prior_ratio", "shares_of", "stated_shares"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_ROUNDS = 10_000


def shares_of(labels: Ints, classes: int) -> Floats:
    """Return each class's share of `labels` `[images]`, `[classes]`."""
    return np.bincount(labels, minlength=classes) / len(labels)


def stated_shares(prior: Mapping[str, float], classes: Sequence[str]) -> Floats:
    """Return the shares that `prior` states, in the order of `classes`.

    Raises:
        SettingsError: it names another class, or leaves one out.
    """
    unknown = [name for name in prior if name not in classes]
    missing = [name for name in classes if name not in prior]
    if unknown:
        raise SettingsError(
            f"--prior names {', '.join(unknown)}, which is no class; the classes are {', '.join(classes)}"
        )
    if missing:
        raise SettingsError(f"--prior says nothing of {', '.join(missing)}; state a share for each class")
    return np.array([prior[name] for name in classes])


def prior_ratio(shares: Floats, fitted: Floats, classes: Sequence[str]) -> tuple[float, ...]:
    """Return how many times as frequent each class is by `shares` as by `fitted`, both `[classes]`.

    Raises:
        DataError: a class has no validation image, so that nothing is known of how the members answer it.
    """
    if not fitted.all():
        name = classes[int(np.argmin(fitted))]
        raise DataError(f"class {name!r} has no validation image, so that its share can't be corrected")
    return tuple((shares / fitted).tolist())


def estimated_shares(probabilities: Floats, fitted: Floats) -> Floats:
    """Return the shares of classes `[classes]` among unlabelled images, by the ensemble's answers to them.

    The shares with the highest likelihood, by expectation-maximisation (Saerens, Latinne & Decaestecker 2002, 2.3).
    It rests on calibrated answers (Alexandari, Kundaje & Shrikumar, arXiv 1901.06852): the tempered vote's. A class
    that shows nowhere still gets half an image's share, as no images prove that there is none.

    Args:
        probabilities: `[images, classes]`, uncorrected.
        fitted: `[classes]`, shares where the vote was fitted, none of them 0.
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
