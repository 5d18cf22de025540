"""Features of images, the inputs of a member's classifying layer, and their novelty."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plurum.detectors import Detector, FeatureModel
from plurum.errors import MetadataError
from plurum.models import model_from_checkpoint, normalise
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run
from plurum.spec import ImageSpec, Member
from plurum.training.statistics.scoring import device_of

__all__ = ["extract_features", "feature_model", "predict_novelty"]

_BATCH = 64


def feature_model(run: Run, member: Member) -> FeatureModel:
    """Return a member with its features, on the GPU if there is one.

    Raises:
        MetadataError: the member is invalid.
        NoFeaturesError: the member has no features.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return FeatureModel(model_from_checkpoint(member, run.checkpoint(member))).eval().to(device)


def extract_features(model: FeatureModel, run: Run, rows: Ints, image: ImageSpec) -> Tensor:
    """Return the features of some images of a run, float32 `[rows, features]`, on the CPU.

    Args:
        model: Member with its features.
        run: Run of the member.
        rows: Indices of the images, in the order of the run's table.
        image: Image spec of the member.

    Raises:
        MetadataError: features are not finite.
        NoFeaturesError: the model has no features.
    """
    features = torch.cat([part for _, part in _run_batches(model, run.pixels(), rows, image)])
    if not features.isfinite().all():
        raise MetadataError(f"a member has features of NaN or infinity for images of {run.path}; train it again")
    return features


def predict_novelty(
    model: FeatureModel, detector: Detector, pixels: npt.NDArray[np.uint8], rows: Ints, image: ImageSpec
) -> tuple[Floats, Floats]:
    """Return logits, `[rows, classes]`, and novelty, `[rows]`, of some images, from one forward pass.

    Args:
        model: Member with its features.
        detector: Detector of the member, on the CPU.
        pixels: Images, uint8 `[images, height, width, 3]`.
        rows: Indices of the images to predict; at least one.
        image: Image spec of the member.

    Raises:
        NoFeaturesError: the model has no features.
    """
    outputs = [(logits, detector(features)[:, 0]) for logits, features in _run_batches(model, pixels, rows, image)]
    logits, novelty = (torch.cat(parts).double().numpy() for parts in zip(*outputs, strict=True))
    return logits, novelty


def _run_batches(
    model: FeatureModel, pixels: npt.NDArray[np.uint8], rows: Ints, image: ImageSpec
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and features of each batch, on the CPU."""
    device = device_of(model)
    for start in range(0, len(rows), _BATCH):
        batch = torch.from_numpy(np.array(pixels[rows[start : start + _BATCH]])).to(device)
        with torch.inference_mode():
            logits, features = model(normalise(batch, image))
        yield logits.cpu(), features.cpu()
