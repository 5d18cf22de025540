"""Fitting the numbers of a finished vote to labels: temperature, prediction sets, review threshold. NumPy and SciPy.

Legend: `[images, classes]` arrays are probabilities, float64; labels are `[images]`, int64; groups are `[images]`,
int64: images of one patient share a number, an image without a patient has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.training.statistics.scoring import losses_of
from plurum.voting import temper

__all__ = [
    "cautious_temperature",
    "conformal_quantiles",
    "fitted_temperature",
    "groups_of",
    "review_threshold",
    "tempered_losses",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TEMPERATURES = (0.1, 10.0)


def groups_of(patients: Sequence[str]) -> Ints:
    """Return a group number for each image, from 0: one per patient, one per image where no patient is known."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(patient or row, len(numbers)) for row, patient in enumerate(patients)])


def fitted_temperature(probabilities: Floats, labels: Ints) -> float:
    """Return the temperature, 0.1 to 10, at which `probabilities` have the lowest NLL (Guo et al., arXiv 1706.04599).

    1 where no answer is wrong: nothing then tells how sure is too sure, and the lowest NLL would be that of certainty.
    """
    if (probabilities.argmax(axis=-1) == labels).all():
        return 1.0
    return _best_temperature(probabilities, labels)


def tempered_losses(probabilities: Floats, labels: Ints) -> Floats:
    """Return each image's NLL `[images]`, in nats, at the temperature, 0.1 to 10, that suits `probabilities` best.

    What votes are compared by. Unlike when they are served, also where no answer is wrong: by keeping 1 there, a vote
    would look worse for never being wrong.
    """
    return losses_of(temper(probabilities, _best_temperature(probabilities, labels)), labels)


def cautious_temperature(probabilities: Floats, labels: Ints, groups: Ints) -> float:
    """Return the temperature that would suit `probabilities` best with one patient more, who has a share of each class.

    For answers to other images than these: where all of a few are right, the lowest NLL is that of certainty, and a
    single mistake elsewhere would then outweigh all else.
    """
    return _best_temperature(probabilities, labels, more=1 / len(np.unique(groups)))


def _best_temperature(probabilities: Floats, labels: Ints, more: float = 0.0) -> float:
    with needs_extra("training"):
        from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        tempered = temper(probabilities, math.exp(log_temperature))
        any_class = -np.log(np.maximum(tempered, np.finfo(np.float64).tiny)).mean() if more else 0.0
        return float(losses_of(tempered, labels).mean() + more * any_class)

    low, high = map(math.log, _TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def conformal_quantiles(probabilities: Floats, labels: Ints, groups: Ints, alpha: float) -> tuple[float, ...]:
    """Return for each class the largest `1 - probability` at which it stays in the prediction set.

    Class-conditional split conformal prediction (Vovk 2012): the true class of a new image is in its set with a
    probability of at least `1 - alpha`, within each class. Where patients have several images, the guarantee is for
    an image of a new patient: each patient counts as one and its images share that (hierarchical conformal
    prediction, Lee, Barber & Willett, arXiv 2306.06342). One more that would score worst stands for the new one; a
    class with too few for `alpha` gets 1, and is in every set.

    Where classes come in other shares than here, the same quantiles hold: each is of one class's images alone, which
    look as before. Sets for all classes together would need those images weighed (Podkopaev & Ramdas, arXiv
    2103.03323).
    """
    scores = 1.0 - probabilities[np.arange(len(labels)), labels]
    quantiles = []
    for index in range(probabilities.shape[1]):
        rows = np.flatnonzero(labels == index)
        _, members_of, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
        order = np.argsort(scores[rows], kind="stable")
        reached = np.cumsum(1 / (sizes[members_of[order]] * (len(sizes) + 1)))
        # Sums of shares differ from `1 - alpha` by rounding where they should meet it.
        enough = np.flatnonzero(reached >= 1 - alpha - 1e-12)
        quantiles.append(float(scores[rows][order][enough[0]]) if len(enough) else 1.0)
    return tuple(quantiles)


def review_threshold(
    confidence: Floats, wrong: npt.NDArray[np.bool_], risk: float, weights: Floats | None = None
) -> float:
    """Return the smallest confidence at and above which the share of wrong answers is at most `risk`.

    0 when all answers together are good enough, 1 when not even the surest are.

    Args:
        confidence: `[images]`, the winners' probabilities.
        wrong: `[images]`.
        risk: 0 to 1.
        weights: `[images]`, as how many images each counts; None for one each.
    """
    weights = np.ones(len(wrong)) if weights is None else weights
    if np.average(wrong, weights=weights) <= risk:
        return 0.0
    values, first = np.unique(confidence, return_inverse=True)
    kept = np.cumsum(np.bincount(first, weights=weights)[::-1])[::-1]
    mistakes = np.cumsum(np.bincount(first, weights=weights * wrong)[::-1])[::-1]
    good = np.flatnonzero(mistakes <= risk * kept + 1e-9)
    return float(min(values[good[0]], 1.0)) if len(good) else 1.0
