"""Scores of predictions against labels, the same in training, export and benchmarks. NumPy only.

Shapes: `[images, classes]` for probabilities, whose rows sum to 1; `[images]` for labels and the rest.
"""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.voting import Verdict

__all__ = ["BINS", "calibration_error", "compute_losses", "confidence_bins", "confidence_of"]


# Number of bins of ECE and of the reliability diagram, as in Guo et al. (arXiv 1706.04599).
BINS = 15
# Smallest probability of the true class in a loss, so that means stay finite.
_SMALLEST = float(np.finfo(np.float64).tiny)


def compute_losses(probabilities: Floats, labels: Ints) -> Floats:
    """Return the negative log-likelihood of each true class, in nats, at most 708."""
    true = probabilities[np.arange(len(labels)), labels]
    # Adding 0 turns the -0.0 of a probability of 1 into 0.0.
    return np.asarray(-np.log(np.maximum(true, _SMALLEST)) + 0.0)


def confidence_bins(confidence: Floats) -> Ints:
    """Return the bin of each confidence, 0 to `BINS - 1`; bin i is the interval (i / BINS, (i + 1) / BINS]."""
    return np.asarray(np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1))


def confidence_of(verdict: Verdict) -> Floats:
    """Return the probabilities of the predicted classes, `[images]`."""
    return np.take_along_axis(verdict.probabilities, verdict.label[:, None], axis=-1)[:, 0]


def calibration_error(probabilities: Floats, winners: Ints, labels: Ints) -> float:
    """Return the expected calibration error (ECE) of the predicted classes `winners`; NaN if a confidence is."""
    confidence = probabilities[np.arange(len(labels)), winners]
    if np.isnan(confidence).any():
        return float("nan")
    gaps = np.bincount(confidence_bins(confidence), weights=confidence - (winners == labels), minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))
