"""Predictions of a run's members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, MetadataError, needs_extra
from plurum.models import model_from_checkpoint
from plurum.run import Run, Split
from plurum.spec import Member
from plurum.training.data.unlabelled import iterate_pixels
from plurum.training.progress import show_progress
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import softmax

__all__ = ["predict_blocks", "predict_files", "predict_members", "predict_pixels"]

_BLOCK = 64
_S = TypeVar("_S", bound=Split)


def predict_members(run: Run, members: tuple[Member, ...], splits: Iterable[_S]) -> dict[_S, npt.NDArray[np.float64]]:
    """Return the members' probabilities by split, `[images, members, classes]`; computed on the GPU if there is one.

    Raises:
        MetadataError: a member is invalid, has other classes or another image spec than the run's data, or returns
            NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    metadata, table, pixels = run.data(), run.table(), run.pixels()
    for member in members:
        if member.classes != metadata.classes or member.image != metadata.image:
            raise MetadataError(f"member {member.name!r} has other classes or another image spec than the run's data")
    names = tuple(splits)
    for split in names:
        if not len(table.rows(split)):
            raise DataError(f"{run.path} has no {split} images; train on data with some")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictions: dict[_S, list[npt.NDArray[np.float64]]] = {split: [] for split in names}
    with show_progress("predicting with members", len(members), "members") as progress:
        for member in members:
            model = model_from_checkpoint(member, run.checkpoint(member)).to(device)
            for split, parts in predictions.items():
                probabilities = softmax(predict_logits(model, pixels, table.rows(split), member.image))
                if not np.isfinite(probabilities).all():
                    raise MetadataError(f"member {member.name!r} returns NaN for {split} images; train it again")
                parts.append(probabilities)
            progress(1, "")
    return {split: np.stack(parts, axis=1) for split, parts in predictions.items()}


def predict_files(run: Run, members: Sequence[Member], files: Sequence[Path]) -> npt.NDArray[np.float64]:
    """Return the members' probabilities for image files, `[files, members, classes]`.

    Raises:
        MetadataError: a member is invalid, or returns NaN.
        DataError: a file can't be read.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    return predict_blocks(run, members, iterate_pixels(files, run.data().image), len(files), "unlabelled images")


def predict_pixels(
    run: Run, members: Sequence[Member], pixels: npt.NDArray[np.uint8], name: str
) -> npt.NDArray[np.float64]:
    """Return the members' probabilities for images at their input size, `[images, members, classes]`.

    Args:
        run: Run with the members' weights.
        members: Members to predict with.
        pixels: Images, uint8 `[images, height, width, 3]`.
        name: Name of the images in messages.

    Raises:
        MetadataError: a member is invalid, or returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    blocks = (pixels[start : start + _BLOCK] for start in range(0, len(pixels), _BLOCK))
    return predict_blocks(run, members, blocks, len(pixels), name)


def predict_blocks(
    run: Run, members: Sequence[Member], blocks: Iterable[npt.NDArray[np.uint8]], number: int, name: str
) -> npt.NDArray[np.float64]:
    """Return the members' probabilities for images at their input size, `[images, members, classes]`.

    Args:
        run: Run with the members' weights.
        members: Members to predict with.
        blocks: Images, uint8 `[images of the block, height, width, 3]`.
        number: Number of images in all blocks.
        name: Name of the images in messages.

    Raises:
        MetadataError: a member is invalid, or returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [model_from_checkpoint(member, run.checkpoint(member)).to(device) for member in members]
    image = run.data().image
    parts = []
    with show_progress("predicting with members", number, "images") as progress:
        for pixels in blocks:
            rows = np.arange(len(pixels))
            parts.append(softmax(np.stack([predict_logits(model, pixels, rows, image) for model in models], axis=1)))
            progress(len(pixels), "")
    predictions = np.concatenate(parts)
    if not np.isfinite(predictions).all():
        raise MetadataError(f"a member returns NaN for {name}; train it again")
    return predictions
