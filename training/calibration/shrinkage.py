"""Choose by cross-fitting how far to trust a site's images against the calibration that a run has.

Legend: probabilities are `[images, classes]`, float64; labels and groups are `[images]`, int64; images of one patient
share a group. Weights are `[images]`, float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.calibration.correction import Correction, fit_corrections
from plurum.training.statistics.folds import patient_folds
from plurum.training.statistics.patients import effective_patients

__all__ = ["SiteFit", "fit_site", "list_strengths"]

# The strengths that are tried, as multiples of the weakest.
_MULTIPLES = np.array([8.0, 4.0, 2.0, 1.0])
# Weakest shrinkage for one patient; it falls with the square root of their number. Cross-fitting on 30 patients can't
# tell a strength of 2 from one of 8, and in simulations with 2 some sites lose 4 points of accuracy.
_WEAKEST = 44.0
# Standard errors by which the best strength must be better than a stronger one.
_ERRORS = 1.0


@dataclass(frozen=True)
class SiteFit:
    """Calibration of probabilities on a site's images.

    Attributes:
        strength: Strength of the shrinkage towards no change; infinite for no change.
        correction: Correction, fitted to all images.
        cross_fitted: Probabilities of each image, corrected with this strength by a fit without its patient.
        judged: Probabilities of each image, where its patient did not choose the strength either.
    """

    strength: float
    correction: Correction
    cross_fitted: Floats
    judged: Floats


def list_strengths(patients: float) -> Floats:
    """Return the strengths to choose from, the strongest first: infinite, which changes nothing, then finite ones."""
    return np.concatenate([[np.inf], _MULTIPLES * _WEAKEST / math.sqrt(patients)])


def fit_site(
    probabilities: Floats, labels: Ints, groups: Ints, seed: int = 0, weights: Floats | None = None
) -> SiteFit:
    """Return the calibration of a vote's probabilities on a site's images.

    Each strength is judged by the NLL of patients that the fit did not see, and the strongest within a standard error
    of the best is taken. The same choice inside each fold judges the procedure. If that does not lower the NLL, nothing
    changes.

    With weights, both the fit and the NLL are weighted, which undoes a biased sample (inverse probability weighting,
    Horvitz & Thompson 1952), and effective patients (Kish 1965) take the place of patients.

    Args:
        probabilities: Probabilities of the vote as calibrated so far.
        labels: True classes.
        groups: Patients.
        seed: Random seed of the folds.
        weights: Weight of each image, above 0; None if each is 1.
    """
    number, patients = len(labels), float(len(np.unique(groups)))
    strata = labels
    if weights is None:
        weights = np.ones(number)
    else:
        weights, patients = weights * number / weights.sum(), effective_patients(weights, groups)
        # Folds also share images of large weights evenly, which are few.
        strata = np.unique(np.stack([labels, weights]), axis=1, return_inverse=True)[1].ravel()
    strengths = list_strengths(patients)
    outer = [fit for fit, _ in patient_folds(strata, groups, seed)]
    inner = [[fit[one] for one, _ in patient_folds(strata[fit], groups[fit], seed)] for fit in outer]
    fits = [np.arange(number), *outer, *(fit for some in inner for fit in some)]
    # Images of one patient resemble each other: all images together say as much as there are patients.
    corrections = _fit_each(probabilities, labels, weights, fits, strengths[1:] * number / patients)
    corrected = [np.stack([one.apply(probabilities) for one in some]) for some in corrections]
    judged, done = probabilities.copy(), 1 + len(outer)
    for index, (fit, parts) in enumerate(zip(outer, inner, strict=True), 1):
        inside = _predict_out_of_fold(corrected[done : done + len(parts)], parts, fit, corrected[index])
        held = np.setdiff1d(fits[0], fit)
        chosen = _choose(inside[:, fit], labels[fit], groups[fit], weights[fit])
        judged[held] = corrected[index][chosen][held]
        done += len(parts)
    across = _predict_out_of_fold(corrected[1 : 1 + len(outer)], outer, fits[0], corrected[0])
    chosen = _choose(across, labels, groups, weights)
    if weights @ (compute_losses(judged, labels) - compute_losses(probabilities, labels)) >= 0:
        chosen = 0
    return SiteFit(float(strengths[chosen]), corrections[0][chosen], across[chosen], judged)


def _fit_each(
    probabilities: Floats, labels: Ints, weights: Floats, fits: list[Ints], finite: Floats
) -> list[list[Correction]]:
    """Return the corrections by strength, no change first, for each of `fits`, the rows to fit to."""
    inside = np.zeros((len(fits), len(labels)))
    for row, rows in zip(inside, fits, strict=True):
        row[rows] = weights[rows]
    found = fit_corrections(probabilities, labels, inside.repeat(len(finite), axis=0), np.tile(finite, len(fits)))
    unchanged = Correction(1.0, (0.0,) * probabilities.shape[1])
    return [[unchanged, *found[start : start + len(finite)]] for start in range(0, len(found), len(finite))]


def _predict_out_of_fold(corrected: list[Floats], fits: list[Ints], rows: Ints, otherwise: Floats) -> Floats:
    """Return the probabilities by strength: of each of `rows` by the fit without it, of other images `otherwise`."""
    across = otherwise.copy()
    for one, fit in zip(corrected, fits, strict=True):
        held = np.setdiff1d(rows, fit)
        across[:, held] = one[:, held]
    return across


def _choose(by_strength: Floats, labels: Ints, groups: Ints, weights: Floats) -> int:
    """Return the index of the strongest shrinkage that is not clearly worse than the best."""
    losses = np.stack([compute_losses(one, labels) for one in by_strength])
    best = int((losses @ weights).argmin())
    excess = losses - losses[best]
    _, owner = np.unique(groups, return_inverse=True)
    mean = excess @ weights / weights.sum()
    by_patient = np.stack([np.bincount(owner, weights=one) for one in (excess - mean[:, None]) * weights])
    error = np.sqrt((by_patient**2).sum(axis=1)) / weights.sum()
    return int(np.flatnonzero(mean <= _ERRORS * error)[0])
