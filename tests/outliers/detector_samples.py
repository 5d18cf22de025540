"""Detectors of outliers for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from plurum.detectors import Detector

__all__ = ["detector_tensors", "random_detector"]


def detector_tensors(features: int = 6, classes: int = 3, axes: int = 4) -> dict[str, Tensor]:
    """Return the tensors of a detector whose numbers are random, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return {
        "centre": torch.randn(features, generator=generator),
        "axes": torch.linalg.qr(torch.randn(features, axes, generator=generator))[0].contiguous(),
        "means": torch.randn(classes, axes, generator=generator),
        "deviations": torch.rand(axes, generator=generator) + 0.5,
        "residual": torch.tensor(0.7),
        "shift": torch.tensor(3.0),
        "scale": torch.tensor(2.0),
    }


def random_detector(features: int = 6, classes: int = 3, axes: int = 4) -> Detector:
    """Return a detector whose numbers are random, the same each time, in evaluation mode."""
    return Detector(**detector_tensors(features, classes, axes)).eval()
