"""Fit a member's detector of outliers to the features of its training images."""

from __future__ import annotations

import torch
from torch import Tensor

from plurum.detectors import Detector

__all__ = ["fit_detector"]

# More change little: see benchmarks/claims/outliers.
_AXES = 256
# Least variance of a direction, as a fraction of the mean variance, so that constant features don't divide by 0.
_LEAST = 1e-6


def fit_detector(features: Tensor, labels: Tensor, validation: Tensor, axes: int = _AXES) -> Detector:
    """Return a detector for features like the training images', standardised on those of validation images.

    The axes span the principal space of all training features. In it, the covariance within classes counts; outside of
    it, each direction has the mean variance of the rest. Classes without training images are left out.

    Args:
        features: Features of training images, `[images, features]`.
        labels: Their classes, int64 `[images]`.
        validation: Features of validation images, `[images, features]`.
        axes: Number of axes; at most one less than there are features.
    """
    known, places = features.double(), torch.unique(labels, return_inverse=True)[1]
    centre = known.mean(dim=0)
    centred = known - centre
    width, classes = known.shape[1], int(places.max()) + 1
    least = max(_LEAST * float(centred.square().mean()), torch.finfo(torch.float32).tiny ** 0.5)
    kept = min(axes, width - 1)
    # Eigenvectors of the largest eigenvalues; they come in ascending order.
    space = torch.linalg.eigh(centred.T @ centred / len(known))[1][:, width - kept :]
    placed = centred @ space
    means = torch.zeros(classes, kept, dtype=torch.float64).index_add_(0, places, placed)
    means /= torch.bincount(places, minlength=classes).unsqueeze(1)
    apart = placed - means[places]
    # Turned within the space, so that the axes don't correlate within classes.
    variances, turned = torch.linalg.eigh(apart.T @ apart / len(known))
    left = (centred - placed @ space.T).square().sum(dim=1).mean() / (width - kept)
    tensors = {
        "centre": centre,
        "axes": space @ turned,
        "means": means @ turned,
        "deviations": variances.clamp(min=least).sqrt(),
        "residual": left.clamp(min=least).sqrt(),
        "shift": torch.tensor(0.0),
        "scale": torch.tensor(1.0),
    }
    with torch.inference_mode():
        distances = Detector(**tensors)(validation).double()
    spread = float(distances.std(unbiased=False))
    # A single validation image has no spread.
    tensors |= {"shift": distances.mean(), "scale": torch.tensor(spread if spread > 0 else 1.0)}
    return Detector(**tensors).eval()
