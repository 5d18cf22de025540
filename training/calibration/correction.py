"""Fit corrections of calibrated probabilities, shrunk towards no change, with NumPy and SciPy.

A correction multiplies the log-probabilities by a slope and adds an offset to each class's: matrix scaling with a
multiple of the identity, for two classes a logistic regression on the log-odds (Guo et al., arXiv 1706.04599; Platt
1999). The penalised likelihood is convex in slope and offsets.

Legend: probabilities are `[images, classes]`, float64; labels are `[images]`, int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plurum.errors import needs_extra
from plurum.predictions.arrays import Floats, Ints
from plurum.voting import temper, with_prior

__all__ = ["Correction", "fit_corrections"]

# Slope's change that is penalised like a change of an offset by 1.
_SLOPE_UNIT = 0.5
_SLOPES = (0.1, 10.0)
# Log-probabilities of members that are this certain say no more about a site.
_LEAST_LOG = -30.0
# Cells of the arrays of one minimisation, so that memory does not grow with the site.
_CELLS = 2_000_000


@dataclass(frozen=True)
class Correction:
    """Correction of calibrated probabilities.

    Attributes:
        slope: Factor of the log-probabilities, > 0; the temperature is divided by it.
        offsets: Offset of each class's log-probability.
    """

    slope: float
    offsets: tuple[float, ...]

    def apply(self, probabilities: Floats) -> Floats:
        """Return the corrected probabilities, as a voting rule computes them."""
        return with_prior(temper(probabilities, 1 / self.slope), np.exp(self.offsets))


def fit_corrections(probabilities: Floats, labels: Ints, weights: Floats, strengths: Floats) -> list[Correction]:
    """Return corrections by penalised maximum likelihood, one per row of weights and strength.

    Args:
        probabilities: Calibrated probabilities to correct.
        labels: True classes.
        weights: Weight of each image in each correction, 0 for those that it is not fitted to, `[corrections, images]`.
        strengths: Strength of the shrinkage towards no change, > 0, `[corrections]`: the precision of a normal prior
            of each offset, 1 / variance.
    """
    logs = np.maximum(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), _LEAST_LOG)
    size = max(1, _CELLS // logs.size)
    found: list[Correction] = []
    for start in range(0, len(weights), size):
        block = slice(start, start + size)
        for slope, *offsets in _minimise(logs, labels, weights[block], strengths[block]).tolist():
            found.append(Correction(slope, tuple(offsets)))
    return found


def _minimise(logs: Floats, labels: Ints, weights: Floats, strengths: Floats) -> Floats:
    """Return slope and offsets of each correction, `[corrections, 1 + classes]`, in one minimisation of their sum."""
    with needs_extra("training"):
        from scipy.optimize import Bounds, minimize

    number, classes = len(weights), logs.shape[1]
    rows = np.arange(len(labels))
    true = np.eye(classes)[labels]
    prior = strengths[:, None] * np.array([1 / _SLOPE_UNIT**2, *[1.0] * classes])
    start = np.tile([1.0, *[0.0] * classes], (number, 1))
    # A minimiser that is told the scale of its variables needs few steps.
    scale = 1 / np.sqrt(prior + 0.1 * weights.sum(axis=1, keepdims=True))

    def loss(flat: Floats) -> tuple[float, Floats]:
        change = flat.reshape(start.shape) * scale
        slopes, offsets = 1 + change[:, :1, None], change[:, None, 1:]
        logits = slopes * logs + offsets
        logits -= logits.max(axis=2, keepdims=True)
        likely = np.exp(logits)
        total = likely.sum(axis=2, keepdims=True)
        losses = np.log(total[:, :, 0]) - logits[:, rows, labels]
        slack = (likely / total - true) * weights[:, :, None]
        gradient = np.concatenate([(slack * logs).sum(axis=(1, 2))[:, None], slack.sum(axis=1)], axis=1)
        value = (weights * losses).sum() + (prior * change**2).sum() / 2
        return float(value), ((gradient + prior * change) * scale).ravel()

    lowest = np.full(start.shape, -np.inf)
    highest = np.full(start.shape, np.inf)
    lowest[:, 0], highest[:, 0] = ((limit - 1) / scale[:, 0] for limit in _SLOPES)
    found = minimize(
        loss,
        np.zeros(start.size),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(lowest.ravel(), highest.ravel()),
        options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-5},
    )
    fitted = start + found.x.reshape(start.shape) * scale
    # Offsets count only by their differences.
    fitted[:, 1:] -= fitted[:, 1:].mean(axis=1, keepdims=True)
    return np.asarray(fitted)
