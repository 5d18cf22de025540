"""Predictions of a run's members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, MetadataError, needs_extra
from plurum.models import model_from_checkpoint
from plurum.predictions.arrays import Floats, Ints
from plurum.run import Run, Split
from plurum.spec import Ensemble, Member
from plurum.training.data.unlabelled import iterate_pixels
from plurum.training.progress import show_progress
from plurum.training.statistics.scoring import predict_logits
from plurum.voting import Verdict, decide, softmax

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plurum.detectors import Detector

__all__ = ["decide_blocks", "decide_splits", "predict_files", "predict_members", "predict_pixels"]

_BLOCK = 64
_S = TypeVar("_S", bound=Split)


@dataclass(frozen=True)
class _Outputs:
    """Probabilities of members, `[images, members, classes]`, and their novelty, `[images, members]`.

    The novelty of a member without a detector is 0.
    """

    probabilities: Floats
    novelty: Floats


class _Predictor:
    """Member on a device, with its detector if the ensemble tests for outliers."""

    def __init__(self, run: Run, member: Member, sha256: str | None, device: torch.device) -> None:
        self._model: nn.Module = model_from_checkpoint(member, run.checkpoint(member)).to(device)
        self._image = member.image
        self._detector: Detector | None = None
        if sha256 is not None:
            from plurum.detectors import read_detector

            self._detector = read_detector(run.detector(member.name), sha256)

    def predict(self, pixels: npt.NDArray[np.uint8], rows: Ints) -> tuple[Floats, Floats]:
        """Return probabilities, `[rows, classes]`, and novelty, `[rows]`."""
        if self._detector is None:
            return softmax(predict_logits(self._model, pixels, rows, self._image)), np.zeros(len(rows))
        from plurum.detectors import FeatureModel
        from plurum.training.inference.features import predict_novelty

        logits, novelty = predict_novelty(FeatureModel(self._model).eval(), self._detector, pixels, rows, self._image)
        return softmax(logits), novelty


def predict_members(run: Run, members: tuple[Member, ...], splits: Iterable[_S]) -> dict[_S, npt.NDArray[np.float64]]:
    """Return the members' probabilities by split, `[images, members, classes]`; computed on the GPU if there is one.

    Raises:
        MetadataError: a member is invalid, has other classes or is decoded by another rule than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    found = _predict_splits(run, members, (None,) * len(members), splits)
    return {split: outputs.probabilities for split, outputs in found.items()}


def decide_splits(run: Run, ensemble: Ensemble, splits: Iterable[_S]) -> dict[_S, Verdict]:
    """Return the ensemble's verdict by split, as a server gives it; computed on the GPU if there is one.

    Raises:
        MetadataError: a member or detector is invalid, has other classes or another image spec than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    found = _predict_splits(run, ensemble.members, _detectors(ensemble), splits)
    return {split: decide(outputs.probabilities, ensemble.rule, outputs.novelty) for split, outputs in found.items()}


def _detectors(ensemble: Ensemble) -> tuple[str | None, ...]:
    """Return the SHA-256 of each member's detector; None without one."""
    return (None,) * len(ensemble.members) if ensemble.outliers is None else ensemble.outliers.detectors


def _predict_splits(
    run: Run, members: Sequence[Member], detectors: Sequence[str | None], splits: Iterable[_S]
) -> dict[_S, _Outputs]:
    """Return the members' outputs by split.

    Raises:
        MetadataError: a member is invalid, has other classes or is decoded by another rule than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    metadata, table, pixels = run.data(), run.table(), run.pixels()
    for member in members:
        if member.classes != metadata.classes or not member.image.is_decoded_like(metadata.image):
            raise MetadataError(
                f"member {member.name!r} has other classes, another colour mode, resize rule or window than the run's "
                f"data"
            )
    names = tuple(splits)
    for split in names:
        if not len(table.rows(split)):
            raise DataError(f"{run.path} has no {split} images; train on data with some")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[_S, list[tuple[Floats, Floats]]] = {split: [] for split in names}
    with show_progress("predicting with members", len(members), "members") as progress:
        for member, sha256 in zip(members, detectors, strict=True):
            predictor = _Predictor(run, member, sha256, device)
            for split, parts in found.items():
                parts.append(predictor.predict(pixels, table.rows(split)))
                if not all(np.isfinite(values).all() for values in parts[-1]):
                    raise MetadataError(f"member {member.name!r} returns NaN for {split} images; train it again")
            progress(1, "")
    return {split: _stack(parts) for split, parts in found.items()}


def _stack(parts: Sequence[tuple[Floats, Floats]]) -> _Outputs:
    """Return the outputs of members, given as probabilities and novelty of each."""
    probabilities, novelty = zip(*parts, strict=True)
    return _Outputs(np.stack(probabilities, axis=1), np.stack(novelty, axis=1))


def predict_files(run: Run, members: Sequence[Member], files: Sequence[Path]) -> npt.NDArray[np.float64]:
    """Return the members' probabilities for image files, `[files, members, classes]`.

    Raises:
        MetadataError: a member is invalid, or returns NaN.
        DataError: a file can't be read.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    blocks = iterate_pixels(files, run.data().image)
    return _predict_blocks(run, members, (None,) * len(members), blocks, len(files), "unlabelled images").probabilities


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
    return _predict_blocks(run, members, (None,) * len(members), blocks, len(pixels), name).probabilities


def decide_blocks(
    run: Run, ensemble: Ensemble, blocks: Iterable[npt.NDArray[np.uint8]], number: int, name: str
) -> Verdict:
    """Return the ensemble's verdict on images at their input size, as a server gives it.

    Args:
        run: Run with the members' weights.
        ensemble: Ensemble of the run.
        blocks: Images, uint8 `[images of the block, height, width, 3]`.
        number: Number of images in all blocks.
        name: Name of the images in messages.

    Raises:
        MetadataError: a member or detector is invalid, or returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    outputs = _predict_blocks(run, ensemble.members, _detectors(ensemble), blocks, number, name)
    return decide(outputs.probabilities, ensemble.rule, outputs.novelty)


def _predict_blocks(
    run: Run,
    members: Sequence[Member],
    detectors: Sequence[str | None],
    blocks: Iterable[npt.NDArray[np.uint8]],
    number: int,
    name: str,
) -> _Outputs:
    """Return the members' outputs for images at their input size."""
    with needs_extra("training"):
        import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictors = [_Predictor(run, member, sha256, device) for member, sha256 in zip(members, detectors, strict=True)]
    parts = []
    with show_progress("predicting with members", number, "images") as progress:
        for pixels in blocks:
            rows = np.arange(len(pixels))
            parts.append(_stack([predictor.predict(pixels, rows) for predictor in predictors]))
            progress(len(pixels), "")
    probabilities = np.concatenate([part.probabilities for part in parts])
    novelty = np.concatenate([part.novelty for part in parts])
    if not (np.isfinite(probabilities).all() and np.isfinite(novelty).all()):
        raise MetadataError(f"a member returns NaN for {name}; train it again")
    return _Outputs(probabilities, novelty)
