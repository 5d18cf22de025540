"""Fit a vote's temperature, prediction sets and review threshold to labels, with NumPy and SciPy.

Legend: `[images, classes]` arrays are probabilities, float64; labels are `[images]`, int64; groups are `[images]`,
int64. Images of one patient share a group; an image without a patient has its own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.voting import temper

__all__ = ["conformal_quantiles", "fit_cautious_temperature", "fit_temperature", "review_threshold", "tempered_losses"]


_TEMPERATURES = (0.1, 10.0)


def fit_temperature(probabilities: Floats, labels: Ints) -> float:
    """Return the temperature, 0.1 to 10, at which `probabilities` have the lowest NLL (Guo et al., arXiv 1706.04599).

    It is 1 if no prediction is wrong: then the NLL would always favour the lowest temperature.
    """
    if (probabilities.argmax(axis=-1) == labels).all():
        return 1.0
    return _best_temperature(probabilities, labels)


def tempered_losses(probabilities: Floats, labels: Ints) -> Floats:
    """Return each image's NLL, `[images]`, in nats, at the best temperature for `probabilities`, 0.1 to 10.

    Votes are compared by this loss. Unlike in `fit_temperature`, the temperature is also fitted if no prediction is
    wrong; otherwise a vote without errors would look worse than others.
    """
    return compute_losses(temper(probabilities, _best_temperature(probabilities, labels)), labels)


def fit_cautious_temperature(probabilities: Floats, labels: Ints, groups: Ints) -> float:
    """Return the best temperature for `probabilities` with one more patient, who belongs to all classes equally.

    Use it to predict other images. If all of a few predictions are correct, the NLL alone favours full confidence, and
    a single error elsewhere would then outweigh everything.
    """
    return _best_temperature(probabilities, labels, more=1 / len(np.unique(groups)))


def _best_temperature(probabilities: Floats, labels: Ints, more: float = 0.0) -> float:
    with needs_extra("training"):
        from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        tempered = temper(probabilities, math.exp(log_temperature))
        any_class = -np.log(np.maximum(tempered, np.finfo(np.float64).tiny)).mean() if more else 0.0
        return float(compute_losses(tempered, labels).mean() + more * any_class)

    low, high = map(math.log, _TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def conformal_quantiles(
    probabilities: Floats, labels: Ints, groups: Ints, alpha: float, weights: Floats | None = None
) -> tuple[float, ...]:
    """Return for each class the largest `1 - probability` at which it is in the prediction set.

    Class-conditional split conformal prediction (Vovk 2012): within each class, the set of a new image contains the
    true class with a probability of at least `1 - alpha`. If patients have several images, the guarantee is for an
    image of a new patient. Each patient then has a weight of 1, divided among the patient's images (hierarchical
    conformal prediction, Lee, Barber & Willett, arXiv 2306.06342). One more patient with the worst score stands for
    the new one. A class with too few patients for `alpha` gets 1 and is in every set.

    The quantiles hold for other class frequencies too, because each depends on the images of one class only. Sets
    over all classes together would need weighted images (Podkopaev & Ramdas, arXiv 2103.03323).

    With weights, the images are a sample that was chosen by what the vote says of them, and the guarantee is for an
    image of the class among all that they were chosen from: weighted conformal prediction (Tibshirani and others, arXiv
    1904.06019). The weight of a new image is not known before it is served, so the largest one stands for it, which can
    only make sets larger. A patient's images are then not divided by their number, as those that were not chosen
    are unknown.

    Args:
        probabilities: Probabilities of the vote.
        labels: True classes.
        groups: Patients.
        alpha: Target fraction of sets that miss the true class, per class.
        weights: Weight of each image, above 0, `[images]`; None if the images are a random sample.
    """
    scores = 1.0 - probabilities[np.arange(len(labels)), labels]
    quantiles = []
    for index in range(probabilities.shape[1]):
        rows = np.flatnonzero(labels == index)
        _, members_of, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
        mass, new = 1 / sizes[members_of], 1.0
        if weights is not None:
            mass = weights[rows]
            new = max([float(weights.max()), *np.bincount(members_of, mass).tolist()])
        order = np.argsort(scores[rows], kind="stable")
        reached = np.cumsum(mass[order]) / (mass.sum() + new)
        # Tolerate rounding in the sums, which should reach `1 - alpha` exactly.
        enough = np.flatnonzero(reached >= 1 - alpha - 1e-12)
        quantiles.append(float(scores[rows][order][enough[0]]) if len(enough) else 1.0)
    return tuple(quantiles)


def review_threshold(
    confidence: Floats, wrong: npt.NDArray[np.bool_], risk: float, weights: Floats | None = None
) -> float:
    """Return the smallest confidence at and above which the error rate is at most `risk`.

    It is 0 if all predictions together meet `risk`, and 1 if not even the most confident ones do.

    Args:
        confidence: Probabilities of the predicted classes, `[images]`.
        wrong: Mask of wrong predictions, `[images]`.
        risk: Target error rate, 0 to 1.
        weights: Weight of each image, `[images]`; 1 by default.
    """
    weights = np.ones(len(wrong)) if weights is None else weights
    if np.average(wrong, weights=weights) <= risk:
        return 0.0
    values, first = np.unique(confidence, return_inverse=True)
    kept = np.cumsum(np.bincount(first, weights=weights)[::-1])[::-1]
    mistakes = np.cumsum(np.bincount(first, weights=weights * wrong)[::-1])[::-1]
    good = np.flatnonzero(mistakes <= risk * kept + 1e-9)
    return float(min(values[good[0]], 1.0)) if len(good) else 1.0
