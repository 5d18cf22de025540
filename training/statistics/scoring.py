"""Compute logits of models, and scores of predictions against labels."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plurum.models import normalise
from plurum.spec import ImageSpec, Scores

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["compute_losses", "compute_scores", "device_of", "predict_logits"]

# Smallest probability of the true class in a loss, so that means stay finite.
_SMALLEST = float(np.finfo(np.float64).tiny)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model; the CPU for a model without parameters and buffers."""
    import torch

    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def predict_logits(
    model: nn.Module,
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    image: ImageSpec,
    batch_size: int = 64,
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


def compute_losses(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the negative log-likelihood of each true class, `[images]`, in nats, at most 708.

    Args:
        probabilities: Class probabilities, `[images, classes]`.
        labels: True classes, `[images]`.
    """
    true = probabilities[np.arange(len(labels)), labels]
    # Adding 0 turns the -0.0 of a probability of 1 into 0.0.
    return np.asarray(-np.log(np.maximum(true, _SMALLEST)) + 0.0)


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
