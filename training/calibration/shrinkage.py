"""Choose by cross-fitting how far to trust a site's images against the calibration that a run has.

Legend: probabilities are `[images, classes]`, float64; labels and groups are `[images]`, int64; images of one patient
share a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.training.calibration.correction import Correction, fit_corrections
from plurum.training.statistics.folds import patient_folds

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


def list_strengths(patients: int) -> Floats:
    """Return the strengths to choose from, the strongest first: infinite, which changes nothing, then finite ones."""
    return np.concatenate([[np.inf], _MULTIPLES * _WEAKEST / math.sqrt(patients)])


def fit_site(probabilities: Floats, labels: Ints, groups: Ints, seed: int = 0) -> SiteFit:
    """Return the calibration of a vote's probabilities on a site's images.

    Each strength is judged by the NLL of patients that the fit did not see, and the strongest within a standard error
    of the best is taken. The same choice inside each fold judges the procedure. If that does not lower the NLL, nothing
    changes.

    Args:
        probabilities: Probabilities of the vote as calibrated so far.
        labels: True classes.
        groups: Patients.
        seed: Random seed of the folds.
    """
    number, strengths = len(labels), list_strengths(len(np.unique(groups)))
    outer = [fit for fit, _ in patient_folds(labels, groups, seed)]
    inner = [[fit[one] for one, _ in patient_folds(labels[fit], groups[fit], seed)] for fit in outer]
    fits = [np.arange(number), *outer, *(fit for some in inner for fit in some)]
    # Images of one patient resemble each other: all images together say as much as there are patients.
    corrections = _fit_each(probabilities, labels, fits, strengths[1:] * number / len(np.unique(groups)))
    corrected = [np.stack([one.apply(probabilities) for one in some]) for some in corrections]
    judged, done = probabilities.copy(), 1 + len(outer)
    for index, (fit, parts) in enumerate(zip(outer, inner, strict=True), 1):
        inside = _predict_out_of_fold(corrected[done : done + len(parts)], parts, fit, corrected[index])
        held = np.setdiff1d(fits[0], fit)
        judged[held] = corrected[index][_choose(inside[:, fit], labels[fit], groups[fit])][held]
        done += len(parts)
    across = _predict_out_of_fold(corrected[1 : 1 + len(outer)], outer, fits[0], corrected[0])
    chosen = _choose(across, labels, groups)
    if compute_losses(judged, labels).mean() >= compute_losses(probabilities, labels).mean():
        chosen = 0
    return SiteFit(float(strengths[chosen]), corrections[0][chosen], across[chosen], judged)


def _fit_each(probabilities: Floats, labels: Ints, fits: list[Ints], finite: Floats) -> list[list[Correction]]:
    """Return the corrections by strength, no change first, for each of `fits`, the rows to fit to."""
    masks = np.zeros((len(fits), len(labels)), dtype=np.bool_)
    for mask, rows in zip(masks, fits, strict=True):
        mask[rows] = True
    found = fit_corrections(probabilities, labels, masks.repeat(len(finite), axis=0), np.tile(finite, len(fits)))
    unchanged = Correction(1.0, (0.0,) * probabilities.shape[1])
    return [[unchanged, *found[start : start + len(finite)]] for start in range(0, len(found), len(finite))]


def _predict_out_of_fold(corrected: list[Floats], fits: list[Ints], rows: Ints, otherwise: Floats) -> Floats:
    """Return the probabilities by strength: of each of `rows` by the fit without it, of other images `otherwise`."""
    across = otherwise.copy()
    for one, fit in zip(corrected, fits, strict=True):
        held = np.setdiff1d(rows, fit)
        across[:, held] = one[:, held]
    return across


def _choose(by_strength: Floats, labels: Ints, groups: Ints) -> int:
    """Return the index of the strongest shrinkage that is not clearly worse than the best."""
    losses = np.stack([compute_losses(one, labels) for one in by_strength])
    best = int(losses.mean(axis=1).argmin())
    excess = losses - losses[best]
    _, owner = np.unique(groups, return_inverse=True)
    spread = excess - excess.mean(axis=1, keepdims=True)
    by_patient = np.stack([np.bincount(owner, weights=one) for one in spread])
    error = np.sqrt((by_patient**2).sum(axis=1)) / len(labels)
    return int(np.flatnonzero(excess.mean(axis=1) <= _ERRORS * error)[0])
