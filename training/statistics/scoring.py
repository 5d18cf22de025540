"""Compute logits of models, and scores of predictions against labels."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plurum.models import normalise
from plurum.predictions.scores import compute_losses
from plurum.spec import ImageSpec, Scores

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["compute_scores", "device_of", "predict_logits"]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model; the CPU for a model without parameters and buffers."""
    import torch

    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def predict_logits(
    model: nn.Module, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], image: ImageSpec, batch_size: int = 64
) -> npt.NDArray[np.float64]:
    """Return the model's logits, `[rows, classes]`, computed in float32, in evaluation mode, on the model's device.

    Args:
        model: Model that takes normalised pixels; its mode is restored.
        pixels: Images, `[images, height, width, 3]`.
        rows: Indices of the images to predict; at least one.
        image: Image spec, which states the normalisation.
        batch_size: Images per forward pass.
    """
    import torch

    device = device_of(model)
    was_training = model.training
    model.eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = torch.from_numpy(pixels[rows[start : start + batch_size]]).to(device)
            logits.append(model(normalise(batch, image)).double().cpu().numpy())
    model.train(was_training)
    return np.concatenate(logits)


def compute_scores(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64] | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Scores:
    """Return the scores of predictions against labels.

    Args:
        probabilities: Class probabilities, `[images, classes]`; rows sum to 1.
        labels: True classes, `[images]`.
        predictions: Predicted classes, `[images]`; by default the most probable, with the lower index on ties.
        weights: Weight of each image, `[images]`; 1 by default.
    """
    if predictions is None:
        predictions = probabilities.argmax(axis=-1)
    return Scores(
        images=len(labels),
        accuracy=float(np.average(predictions == labels, weights=weights)),
        nll=float(np.average(compute_losses(probabilities, labels), weights=weights)),
    )
