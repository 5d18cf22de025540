"""Features of a run's images: the inputs of a member's classifying layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plurum.detectors import FeatureModel
from plurum.errors import MetadataError
from plurum.models import model_from_checkpoint, normalise
from plurum.predictions.arrays import Ints
from plurum.run import Run
from plurum.spec import Member

__all__ = ["extract_features", "feature_model"]

_BATCH = 64


def feature_model(run: Run, member: Member) -> FeatureModel:
    """Return a member with its features, on the GPU if there is one.

    Raises:
        MetadataError: the member is invalid.
        NoFeaturesError: the member has no features.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return FeatureModel(model_from_checkpoint(member, run.checkpoint(member))).eval().to(device)


def extract_features(model: FeatureModel, run: Run, rows: Ints) -> Tensor:
    """Return the features of some images of a run, float32 `[rows, features]`, on the CPU.

    Args:
        model: Member with its features.
        run: Run of the member.
        rows: Indices of the images, in the order of the run's table.

    Raises:
        MetadataError: features are not finite.
        NoFeaturesError: the model has no features.
    """
    pixels, image = run.pixels(), run.data().image
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            batch = torch.from_numpy(np.array(pixels[rows[start : start + _BATCH]])).to(device)
            found.append(model(normalise(batch, image))[1].cpu())
    features = torch.cat(found)
    if not features.isfinite().all():
        raise MetadataError(f"a member has features of NaN or infinity for images of {run.path}; train it again")
    return features
