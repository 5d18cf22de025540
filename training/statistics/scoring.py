"""What members answer, and how well answers fit labels."""

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

__all__ = ["device_of", "logits_of", "losses_of", "scores_of"]

# What a certain wrong answer is scored by, so that means stay finite.
_SMALLEST = float(np.finfo(np.float64).tiny)


def device_of(model: nn.Module) -> torch.device:
    """Return where the model is; the CPU for one that has nothing to be anywhere."""
    import torch

    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def logits_of(
    model: nn.Module,
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    image: ImageSpec,
    batch_size: int = 64,
) -> npt.NDArray[np.float64]:
    """Return the model's logits, `[rows, classes]`, computed in float32 in evaluation mode where the model is.

    Args:
        model: Takes normalised pixels; its mode is left as it was.
        pixels: `[images, height, width, 3]`.
        rows: Indices of the images to ask about, at least one.
        image: How they are normalised.
        batch_size: Images at a time.
    """
    import torch

    device = device_of(model)
    was_training = model.training
    model.eval()
    answers = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = torch.from_numpy(pixels[rows[start : start + batch_size]]).to(device)
            answers.append(model(normalise(batch, image)).double().cpu().numpy())
    model.train(was_training)
    return np.concatenate(answers)


def losses_of(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the negative log-likelihood of each true class, `[images]`, in nats, at most 708.

    Args:
        probabilities: `[images, classes]`.
        labels: `[images]`.
    """
    true = probabilities[np.arange(len(labels)), labels]
    # Adding 0 turns the -0.0 of a certain answer into 0.0.
    return np.asarray(-np.log(np.maximum(true, _SMALLEST)) + 0.0)


def scores_of(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    answers: npt.NDArray[np.int64] | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Scores:
    """Return the scores of probabilities `[images, classes]` against `labels` `[images]`.

    Args:
        probabilities: Rows sum to 1.
        labels: True classes.
        answers: Winning classes, where ties are decided otherwise than by the lower index.
        weights: `[images]`, as how many images each counts; None for one each.
    """
    if answers is None:
        answers = probabilities.argmax(axis=-1)
    return Scores(
        images=len(labels),
        accuracy=float(np.average(answers == labels, weights=weights)),
        nll=float(np.average(losses_of(probabilities, labels), weights=weights)),
    )
