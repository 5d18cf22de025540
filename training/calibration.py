"""Fitting the numbers of a vote to labels: weights, temperature, prediction sets, review threshold. NumPy and SciPy.

Legend: `[images, members, classes]` and `[images, classes]` arrays are probabilities, float64; labels are `[images]`,
int64; groups are `[images]`, int64: images of one patient share a number, an image without a patient has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.training.bootstrap import Bootstrap, mean_interval
from plurum.training.scoring import losses_of
from plurum.voting import soft_vote, temper

__all__ = [
    "conformal_quantiles",
    "fitted_temperature",
    "fitted_weights",
    "groups_of",
    "improvement_interval",
    "review_threshold",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_ROUNDS = 10_000
_TEMPERATURES = (0.1, 10.0)
_TINY = float(np.finfo(np.float64).tiny)


def groups_of(patients: Sequence[str]) -> Ints:
    """Return a group number for each image, from 0: one per patient, one per image where no patient is known."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(patient or row, len(numbers)) for row, patient in enumerate(patients)])


def fitted_weights(members: Floats, labels: Ints) -> Floats:
    """Return the weights `[members]`, on the simplex, of the soft vote with the lowest NLL.

    By expectation-maximisation for mixture weights (Dempster, Laird & Rubin 1977, 4.3): the NLL is convex in the
    weights, so that what it comes to is the optimum. It starts from equal weights, so that it keeps them where
    others are no better, and where equal ones answer all images right: only members' sureness could then tell them
    apart, which the temperature is there to mend.
    """
    equal = np.full(members.shape[1], 1 / members.shape[1])
    if (soft_vote(members, equal).argmax(axis=-1) == labels).all():
        return equal
    true = members[np.arange(len(labels)), :, labels]
    # A member that gives all its true classes no chance at all must not make 0 / 0.
    true = np.maximum(true, _TINY)
    weights = equal
    for _ in range(_MAX_ROUNDS):
        shares = true * weights
        updated = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        change = np.abs(updated - weights).max()
        weights = updated
        if change < 1e-9:
            break
    return np.asarray(weights / weights.sum())


def improvement_interval(
    members: Floats, labels: Ints, groups: Ints, weights: Floats, *, draws: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the NLL that `weights` save against equal ones, in nats per image.

    Each vote is scored at its own temperature, as it would be served: else the weights of the surest member win,
    since an average is less sure than its parts. A paired bootstrap over groups: both are scored on the same drawn
    patients (Efron & Tibshirani 1993, 16). The weights were fitted on the images they are judged by, which favours
    them; that their whole interval must be above 0 to be taken outweighs it.

    Args:
        members: `[images, members, classes]`.
        labels: `[images]`.
        groups: `[images]`.
        weights: `[members]`.
        draws: How many samples.
        seed: What they are drawn from.
    """
    saved = _served_losses(members, labels, np.full(len(weights), 1 / len(weights)))
    saved -= _served_losses(members, labels, weights)
    return mean_interval(saved, Bootstrap(groups, draws, seed))


def _served_losses(members: Floats, labels: Ints, weights: Floats) -> Floats:
    vote = soft_vote(members, weights)
    return losses_of(temper(vote, fitted_temperature(vote, labels)), labels)


def fitted_temperature(probabilities: Floats, labels: Ints) -> float:
    """Return the temperature, 0.1 to 10, at which `probabilities` have the lowest NLL (Guo et al., arXiv 1706.04599).

    1 where no answer is wrong: nothing then tells how sure is too sure, and the lowest NLL would be that of certainty.
    """
    with needs_extra("training"):
        from scipy.optimize import minimize_scalar

    if (probabilities.argmax(axis=-1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(losses_of(temper(probabilities, math.exp(log_temperature)), labels).mean())

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


def review_threshold(confidence: Floats, wrong: npt.NDArray[np.bool_], risk: float) -> float:
    """Return the smallest confidence at and above which the share of wrong answers is at most `risk`.

    0 when all answers together are good enough, 1 when not even the surest are.

    Args:
        confidence: `[images]`, the winners' probabilities.
        wrong: `[images]`.
        risk: 0 to 1.
    """
    if wrong.mean() <= risk:
        return 0.0
    values, first = np.unique(confidence, return_index=False, return_inverse=True)
    per_value = np.bincount(first, minlength=len(values))
    wrong_per_value = np.bincount(first, weights=wrong, minlength=len(values))
    kept = np.cumsum(per_value[::-1])[::-1]
    mistakes = np.cumsum(wrong_per_value[::-1])[::-1]
    good = np.flatnonzero(mistakes <= risk * kept + 1e-9)
    return float(min(values[good[0]], 1.0)) if len(good) else 1.0
