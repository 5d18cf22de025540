"""Ensembles for use in Python: from a run, from checkpoints, or from models.

Legend: pixels are uint8 `[batch, height, width, 3]`, RGB, at the size of the image spec. The ensemble normalises them
as the members were trained; do not normalise them yourself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plurum.detectors import Detector, FeatureModel, read_detector
from plurum.errors import DataError, MetadataError, SettingsError
from plurum.models import model_from_checkpoint, model_from_tensors
from plurum.predictions.arrays import Floats
from plurum.run import Run
from plurum.spec import ImageSpec, read_member
from plurum.state_dicts import read_state_dict
from plurum.training.inference.features import predict_novelty
from plurum.training.statistics.scoring import device_of, predict_logits
from plurum.voting import MODES, Verdict, VotingRule, decide, softmax

__all__ = ["ImageEnsemble", "ensemble_from_checkpoints", "ensemble_from_models", "ensemble_from_run"]

_LOG = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8] | Tensor


class ImageEnsemble(nn.Module):
    """Ensemble of models; calling it returns probabilities, `predict_with_uncertainty` the whole verdict.

    It is for inference only: models are in evaluation mode, and no gradients are recorded.

    Args:
        models: Models that take normalised pixels, float32 `[batch, 3, height, width]`, and return logits
            `[batch, classes]`.
        classes: Class names, in the order of the logits.
        image: Image spec by which images are decoded.
        rule: Voting rule.
        detectors: Detector of outliers of each model; None without one. By default, no model has one.
        images: Image spec of each model; by default `image` of all.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        classes: Sequence[str],
        image: ImageSpec,
        rule: VotingRule,
        detectors: Sequence[Detector | None] = (),
        images: Sequence[ImageSpec] = (),
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models).eval()
        # Not submodules: they stay on the CPU.
        self._detectors = tuple(detectors) or (None,) * len(self.models)
        self.classes = tuple(classes)
        self.image = image
        self._images = tuple(images) or (image,) * len(self.models)
        self.rule = rule

    def forward(self, pixels: Pixels) -> Tensor:
        """Return probabilities, float32 `[batch, classes]`, on the device of the models.

        Raises:
            DataError: the type, size or shape of `pixels` does not match the image spec.
            MetadataError: a model returns another number of classes.
        """
        device = device_of(self)
        return torch.from_numpy(self.predict_with_uncertainty(pixels).probabilities).to(device, torch.float32)

    def predict_with_uncertainty(self, pixels: Pixels) -> Verdict:
        """Return the verdict of all members: probabilities, label, entropy, disagreement, prediction set, review.

        Raises:
            DataError: the type, size or shape of `pixels` does not match the image spec.
            MetadataError: a model returns another number of classes.
        """
        batch = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
        height, width = self.image.height, self.image.width
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (height, width, 3) or not len(batch):
            raise DataError(
                f"pixels: expected uint8 [batch, {height}, {width}, 3], got {batch.dtype} {list(batch.shape)}; use "
                f"plurum.images.pixels_from_image"
            )
        members = zip(self.models, self._detectors, self._images, strict=True)
        found = [_predict(*member, batch) for member in members]
        logits, novelty = zip(*found, strict=True)
        for index, outputs in enumerate(logits):
            if outputs.shape != (len(batch), len(self.classes)):
                raise MetadataError(
                    f"model {index}: expected logits [{len(batch)}, {len(self.classes)}] for the classes "
                    f"{', '.join(self.classes)}, got {list(outputs.shape)}"
                )
        return decide(softmax(np.stack(logits, axis=1)), self.rule, np.stack(novelty, axis=1))


def ensemble_from_run(path: Path | str) -> ImageEnsemble:
    """Return the ensemble of a fitted run, with all fitted parameters.

    Raises:
        MetadataError: the folder is not a run, is not fitted, or has an invalid member.
    """
    run = Run(Path(path))
    ensemble = run.ensemble()
    models = [model_from_checkpoint(member, run.checkpoint(member)) for member in ensemble.members]
    hashes = ensemble.outliers.detectors if ensemble.outliers else (None,) * len(models)
    detectors = [
        None if sha256 is None else read_detector(run.detector(member.name), sha256)
        for member, sha256 in zip(ensemble.members, hashes, strict=True)
    ]
    images = [member.image for member in ensemble.members]
    return ImageEnsemble(models, ensemble.classes, ensemble.image, ensemble.rule, detectors, images)


def ensemble_from_models(
    models: Sequence[nn.Module],
    *,
    classes: Sequence[str],
    image: ImageSpec,
    voting: str = "soft",
    weights: Sequence[float] | None = None,
) -> ImageEnsemble:
    """Return an unfitted ensemble of models: without temperature, prediction sets and review threshold.

    Args:
        models: Models that take normalised pixels, float32 `[batch, 3, height, width]`, and return logits.
        classes: Class names, in the order of the logits.
        image: Image spec of all models.
        voting: Voting mode: `soft` averages probabilities, `hard` counts votes.
        weights: Weight of each model, each ≥ 0, with a sum of 1; equal by default.

    Raises:
        SettingsError: there is no model, too few classes, or invalid weights.
    """
    if not models or len(set(classes)) < max(2, len(classes)):
        raise SettingsError(
            f"expected at least 1 model and 2 distinct classes, got {len(models)} models and classes {list(classes)}"
        )
    known = [name for name, mode in MODES.items() if not mode.parameters]
    if voting not in known:
        raise SettingsError(f"voting: expected {' or '.join(known)}, got {voting!r}; fit other votes with plurum fit")
    rule = VotingRule(_weights(len(models), weights), voting)
    return ImageEnsemble(models, classes, image, rule)


def ensemble_from_checkpoints(
    sources: Sequence[Path | str],
    *,
    arch: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    image: ImageSpec | None = None,
    voting: str = "soft",
    weights: Sequence[float] | None = None,
) -> ImageEnsemble:
    """Return an ensemble of checkpoints: member folders of a run, or files of weights.

    Args:
        sources: Folders `RUN/members/NAME`, or state dicts as .safetensors, .pt or .pth. A pickle with anything but
            weights is refused.
        arch: Architecture names for `timm.create_model`: one for all sources, or one per source. Only for files;
            folders state theirs.
        classes: Class names, in the order of the outputs. Only for files; folders state theirs.
        image: Image spec. Only for files; folders state theirs.
        voting: Voting mode: `soft` averages probabilities, `hard` counts votes.
        weights: Weight of each source, each ≥ 0, with a sum of 1; equal by default.

    Raises:
        SettingsError: `arch`, `classes` or `image` is missing for a file, or weights are invalid.
        MetadataError: a checkpoint is missing, invalid, or has other classes or another image spec than the first.
    """
    _weights(len(sources), weights)
    archs = [arch] * len(sources) if arch is None or isinstance(arch, str) else list(arch)
    if len(archs) != len(sources):
        raise SettingsError(
            f"arch: expected a name or a list of {len(sources)}, one per checkpoint, got a list of {len(archs)}"
        )
    loaded = [_load(Path(source), name, classes, image) for source, name in zip(sources, archs, strict=True)]
    for source, one in zip(sources, loaded, strict=True):
        if one.classes != loaded[0].classes or one.image != loaded[0].image:
            raise MetadataError(f"{source} has other classes or another image spec than {sources[0]}")
    if not loaded:
        raise SettingsError("sources: expected at least 1 checkpoint, got 0")
    first = loaded[0]
    return ensemble_from_models(
        [one.model for one in loaded], classes=first.classes, image=first.image, voting=voting, weights=weights
    )


def _predict(
    model: nn.Module, detector: Detector | None, image: ImageSpec, batch: npt.NDArray[np.uint8]
) -> tuple[Floats, Floats]:
    """Return a model's logits, `[batch, classes]`, and novelty, `[batch]`; 0 without a detector."""
    rows = np.arange(len(batch))
    if detector is None:
        return predict_logits(model, batch, rows, image), np.zeros(len(batch))
    return predict_novelty(FeatureModel(model).eval(), detector, batch, rows, image)


@dataclass(frozen=True)
class _LoadedMember:
    """Model with its classes and image spec."""

    model: nn.Module
    classes: tuple[str, ...]
    image: ImageSpec


def _load(source: Path, arch: str | None, classes: Sequence[str] | None, image: ImageSpec | None) -> _LoadedMember:
    if source.is_dir():
        member = read_member(source / "member.json")
        return _LoadedMember(model_from_checkpoint(member, source / member.checkpoint), member.classes, member.image)
    if arch is None or classes is None or image is None:
        raise SettingsError(f"{source} is a file of weights without metadata; pass arch, classes and image")
    state = read_state_dict(source)
    if state.note:
        _LOG.warning("%s: %s", source, state.note)
    return _LoadedMember(model_from_tensors(source, state.tensors, arch, len(classes)), tuple(classes), image)


def _weights(models: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1 / models,) * models if models else ()
    if len(weights) != models:
        raise SettingsError(f"weights: expected {models}, one per model, got {len(weights)}")
    if not all(weight >= 0 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise SettingsError(f"weights: expected numbers of at least 0 with a sum of 1, got {list(weights)}")
    return tuple(float(weight) for weight in weights)
