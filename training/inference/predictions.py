"""Predictions of a run's members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

__all__ = [
    "MemberPredictions",
    "decide_blocks",
    "decide_splits",
    "predict_ensemble",
    "predict_files",
    "predict_members",
    "predict_out_of_fold",
    "predict_outputs",
    "predict_pixels",
    "predict_splits",
    "predict_unlabelled",
]

_BLOCK = 64
_S = TypeVar("_S", bound=Split)


@dataclass(frozen=True)
class MemberPredictions:
    """Predictions of members for images.

    Attributes:
        probabilities: Probabilities, `[images, members, classes]`.
        novelty: Novelty, `[images, members]`; 0 for a member without a detector.
    """

    probabilities: Floats
    novelty: Floats


class _Predictor:
    """Member on a device, with its detector if the ensemble tests for outliers."""

    def __init__(self, run: Run, member: Member, detector: Detector | None, device: torch.device) -> None:
        self._model: nn.Module = model_from_checkpoint(member, run.checkpoint(member)).to(device)
        self._image = member.image
        self._detector = detector

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
    found = predict_splits(run, members, (None,) * len(members), splits)
    return {split: outputs.probabilities for split, outputs in found.items()}


def decide_splits(run: Run, ensemble: Ensemble, splits: Iterable[_S]) -> dict[_S, Verdict]:
    """Return the verdict of all members by split, as a server gives it; computed on the GPU if there is one.

    Raises:
        MetadataError: a member or detector is invalid, has other classes or another image spec than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    found = predict_outputs(run, ensemble, splits)
    return {split: decide(outputs.probabilities, ensemble.rule, outputs.novelty) for split, outputs in found.items()}


def predict_outputs(run: Run, ensemble: Ensemble, splits: Iterable[_S]) -> dict[_S, MemberPredictions]:
    """Return what the members of an ensemble say by split; computed on the GPU if there is one.

    Raises:
        MetadataError: a member or detector is invalid, has other classes or another image spec than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    return predict_splits(run, ensemble.members, _detectors(run, ensemble), splits)


def _detectors(run: Run, ensemble: Ensemble) -> list[Detector | None]:
    """Return the detector of each of an ensemble's members; None without one."""
    if ensemble.outliers is None:
        return [None] * len(ensemble.members)
    return _read_detectors(run, ensemble.members, ensemble.outliers.detectors)


def _read_detectors(run: Run, members: Sequence[Member], detectors: Sequence[str | None]) -> list[Detector | None]:
    """Return each member's detector, by its SHA-256; None without one."""
    if not any(detectors):
        return [None] * len(members)
    with needs_extra("training"):
        from plurum.detectors import read_detector
    return [
        None if sha256 is None else read_detector(run.detector(member.name), sha256)
        for member, sha256 in zip(members, detectors, strict=True)
    ]


def predict_splits(
    run: Run, members: Sequence[Member], detectors: Sequence[Detector | None], splits: Iterable[_S]
) -> dict[_S, MemberPredictions]:
    """Return the members' predictions by split, from one pass; computed on the GPU if there is one.

    Args:
        run: Run of the members.
        members: Members to predict with.
        detectors: Detector of each member; None without one.
        splits: Splits to predict.

    Raises:
        MetadataError: a member is invalid, has other classes or is decoded by another rule than the run's data, or
            returns NaN.
        DataError: a split has no image.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    _check_members(run, members)
    table, pixels = run.table(), run.pixels()
    names = tuple(splits)
    for split in names:
        if not len(table.rows(split)):
            raise DataError(f"{run.path} has no {split} images; train on data with some")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[_S, list[tuple[Floats, Floats]]] = {split: [] for split in names}
    with show_progress("predicting with members", len(members), "members") as progress:
        for member, detector in zip(members, detectors, strict=True):
            predictor = _Predictor(run, member, detector, device)
            for split, parts in found.items():
                parts.append(predictor.predict(pixels, table.rows(split)))
                _check_finite(member, f"{split} images", *parts[-1])
            progress(1, "")
    return {split: _stack(parts) for split, parts in found.items()}


def predict_out_of_fold(run: Run, models: Sequence[Mapping[int, Member]]) -> Floats:
    """Return each model's probabilities for the training images of a run with folds, `[images, models, classes]`.

    The member whose fold has an image predicts it, because no other member of the model has not learnt it.

    Args:
        run: Run of the members.
        models: Members of each model by the fold that they did not learn, for all folds.

    Raises:
        MetadataError: a member is invalid, has other classes or is decoded by another rule than the run's data, or
            returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
    members = [member for model in models for member in model.values()]
    _check_members(run, members)
    table, pixels = run.table(), run.pixels()
    rows = table.rows("train")
    folds = np.zeros(0, dtype=np.int64) if table.folds is None else table.folds[rows]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = np.full((len(rows), len(models), len(run.data().classes)), np.nan)
    with show_progress("predicting out of fold", len(members), "members") as progress:
        for index, model in enumerate(models):
            for fold, member in model.items():
                seen = np.flatnonzero(folds == fold)
                outputs, _ = _Predictor(run, member, None, device).predict(pixels, rows[seen])
                _check_finite(member, "training images", outputs)
                found[seen, index] = outputs
                progress(1, "")
    return found


def _check_members(run: Run, members: Iterable[Member]) -> None:
    metadata = run.data()
    for member in members:
        if member.classes != metadata.classes or not member.image.is_decoded_like(metadata.image):
            raise MetadataError(
                f"member {member.name!r} has other classes, another colour mode, resize rule or window than the run's "
                f"data"
            )


def _check_finite(member: Member, images: str, *outputs: Floats) -> None:
    if not all(np.isfinite(values).all() for values in outputs):
        raise MetadataError(f"member {member.name!r} returns NaN for {images}; train it again")


def _stack(parts: Sequence[tuple[Floats, Floats]]) -> MemberPredictions:
    """Return the outputs of members, given as probabilities and novelty of each."""
    probabilities, novelty = zip(*parts, strict=True)
    return MemberPredictions(np.stack(probabilities, axis=1), np.stack(novelty, axis=1))


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
    return _predict_blocks(run, members, (None,) * len(members), _blocks(pixels), len(pixels), name).probabilities


def predict_ensemble(run: Run, ensemble: Ensemble, pixels: npt.NDArray[np.uint8], name: str) -> MemberPredictions:
    """Return what the members of an ensemble say of images at their input size.

    Args:
        run: Run with the members' weights and detectors.
        ensemble: Ensemble of the run.
        pixels: Images, uint8 `[images, height, width, 3]`.
        name: Name of the images in messages.

    Raises:
        MetadataError: a member or detector is invalid, or returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    detectors = _detectors(run, ensemble)
    return _predict_blocks(run, ensemble.members, detectors, _blocks(pixels), len(pixels), name)


def _blocks(pixels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(pixels), _BLOCK):
        yield pixels[start : start + _BLOCK]


def predict_unlabelled(
    run: Run, members: Sequence[Member], detectors: Sequence[str | None], pixels: npt.NDArray[np.uint8]
) -> MemberPredictions:
    """Return the outputs of members for images at their input size.

    Args:
        run: Run with the members' weights.
        members: Members to predict with.
        detectors: SHA-256 of each member's detector; None computes no novelty.
        pixels: Images, uint8 `[images, height, width, 3]`.

    Raises:
        MetadataError: a member or detector is invalid, or returns NaN.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    found = _read_detectors(run, members, detectors)
    return _predict_blocks(run, members, found, _blocks(pixels), len(pixels), "unlabelled images")


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
    outputs = _predict_blocks(run, ensemble.members, _detectors(run, ensemble), blocks, number, name)
    return decide(outputs.probabilities, ensemble.rule, outputs.novelty)


def _predict_blocks(
    run: Run,
    members: Sequence[Member],
    detectors: Sequence[Detector | None],
    blocks: Iterable[npt.NDArray[np.uint8]],
    number: int,
    name: str,
) -> MemberPredictions:
    """Return the members' outputs for images at their input size."""
    with needs_extra("training"):
        import torch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictors = [
        _Predictor(run, member, detector, device) for member, detector in zip(members, detectors, strict=True)
    ]
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
    return MemberPredictions(probabilities, novelty)
