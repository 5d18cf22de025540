"""Ensembles to be called from Python: of a run, of checkpoints, or of models one has.

Legend: pixels are uint8 `[batch, height, width, 3]`, RGB, at the size that the image spec states; they are normalised
inside, so that nobody can do it twice or otherwise than the members were trained.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plurum.errors import ContractError, DataError, SettingsError
from plurum.models import model_from_checkpoint, model_from_tensors
from plurum.run import Run
from plurum.spec import ImageSpec, read_member
from plurum.state_dicts import read_state_dict
from plurum.training.statistics.scoring import device_of, logits_of
from plurum.voting import Verdict, VotingRule, decide, softmax

__all__ = ["ImageEnsemble", "ensemble_from_checkpoints", "ensemble_from_models", "ensemble_from_run"]

_LOG = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8] | Tensor


class ImageEnsemble(nn.Module):
    """Models and how they vote; calling it gives probabilities, `predict_with_uncertainty` the whole verdict.

    Answers are those of inference: models are in evaluation mode, and nothing is recorded for gradients.

    Args:
        models: Each takes normalised pixels, float32 `[batch, 3, height, width]`, and answers logits
            `[batch, classes]`.
        classes: Names, in the order of the logits.
        image: Size, and how pixels are normalised.
        rule: How they vote.
    """

    def __init__(self, models: Sequence[nn.Module], classes: Sequence[str], image: ImageSpec, rule: VotingRule) -> None:
        super().__init__()
        self.models = nn.ModuleList(models).eval()
        self.classes = tuple(classes)
        self.image = image
        self.rule = rule

    def forward(self, pixels: Pixels) -> Tensor:
        """Return probabilities, float32 `[batch, classes]`, on the device where the models are.

        Raises:
            DataError: `pixels` are of another type, size or shape than the image spec states.
            ContractError: a model answers with other classes.
        """
        device = device_of(self)
        return torch.from_numpy(self.predict_with_uncertainty(pixels).probabilities).to(device, torch.float32)

    def predict_with_uncertainty(self, pixels: Pixels) -> Verdict:
        """Return what a server would: probabilities, label, entropy, disagreement, prediction set, review.

        Raises:
            DataError: `pixels` are of another type, size or shape than the image spec states.
            ContractError: a model answers with other classes.
        """
        batch = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
        wanted = (self.image.height, self.image.width, 3)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != wanted or not len(batch):
            raise DataError(
                f"pixels are {batch.dtype} {list(batch.shape)}; uint8 [batch, {wanted[0]}, {wanted[1]}, 3] is needed, "
                f"as plurum.images.pixels_from_image gives it"
            )
        rows = np.arange(len(batch))
        logits = [logits_of(model, batch, rows, self.image) for model in self.models]
        for index, answers in enumerate(logits):
            if answers.shape != (len(batch), len(self.classes)):
                raise ContractError(
                    f"model {index} answers {list(answers.shape)}; [{len(batch)}, {len(self.classes)}] is needed, as "
                    f"the classes are {', '.join(self.classes)}"
                )
        return decide(softmax(np.stack(logits, axis=1)), self.rule)


def ensemble_from_run(path: Path | str) -> ImageEnsemble:
    """Return the ensemble of a run that `plurum fit` has fitted, with every number it fitted.

    Raises:
        ContractError: the folder is no run, is not fitted, or has a broken member.
    """
    run = Run(Path(path))
    ensemble = run.ensemble()
    models = [model_from_checkpoint(member, run.checkpoint(member)) for member in ensemble.members]
    return ImageEnsemble(models, ensemble.classes, ensemble.image, ensemble.rule)


def ensemble_from_models(
    models: Sequence[nn.Module],
    *,
    classes: Sequence[str],
    image: ImageSpec,
    voting: Literal["soft", "hard"] = "soft",
    weights: Sequence[float] | None = None,
) -> ImageEnsemble:
    """Return an ensemble of models that exist; nothing is fitted: no temperature, no prediction sets, no review.

    Args:
        models: Each takes normalised pixels, float32 `[batch, 3, height, width]`, and answers logits.
        classes: Names, in the order of the logits.
        image: What all of them expect.
        voting: Soft votes average probabilities, hard votes count winners.
        weights: One per model, each ≥ 0, together 1; equal by default.

    Raises:
        SettingsError: no model, too few classes, or weights that don't fit.
    """
    if not models or len(set(classes)) < max(2, len(classes)):
        raise SettingsError(
            f"{len(models)} models and classes {list(classes)}: a model and two distinct classes are needed"
        )
    rule = VotingRule(_weights(len(models), weights), _voting(voting))
    return ImageEnsemble(models, classes, image, rule)


def ensemble_from_checkpoints(
    sources: Sequence[Path | str],
    *,
    arch: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    image: ImageSpec | None = None,
    voting: Literal["soft", "hard"] = "soft",
    weights: Sequence[float] | None = None,
) -> ImageEnsemble:
    """Return an ensemble of checkpoints: members' folders of a run, or files of weights.

    Args:
        sources: Folders `RUN/members/NAME`, or state dicts as .safetensors, .pt or .pth (read as weights alone: a
            pickle that holds more is refused).
        arch: Of the files, what `timm.create_model` takes: one for all, or one per source. Folders know theirs.
        classes: Of the files, in the order of their outputs. Folders know theirs.
        image: What the files expect. Folders know theirs.
        voting: Soft votes average probabilities, hard votes count winners.
        weights: One per source, each ≥ 0, together 1; equal by default.

    Raises:
        SettingsError: what a file does not say of itself was not stated, or weights that don't fit.
        ContractError: a checkpoint is missing, broken, or of other classes or another image spec than the first.
    """
    _weights(len(sources), weights)
    archs = [arch] * len(sources) if arch is None or isinstance(arch, str) else list(arch)
    if len(archs) != len(sources):
        raise SettingsError(
            f"{len(archs)} arch for {len(sources)} checkpoints; one for all, or one for each, is needed"
        )
    loaded = [_loaded(Path(source), name, classes, image) for source, name in zip(sources, archs, strict=True)]
    for source, one in zip(sources, loaded, strict=True):
        if one.classes != loaded[0].classes or one.image != loaded[0].image:
            raise ContractError(f"{source} has other classes or another image spec than {sources[0]}")
    if not loaded:
        raise SettingsError("no checkpoint; name one at least")
    first = loaded[0]
    return ensemble_from_models(
        [one.model for one in loaded], classes=first.classes, image=first.image, voting=voting, weights=weights
    )


@dataclass(frozen=True)
class _Loaded:
    """A model, and what it expects."""

    model: nn.Module
    classes: tuple[str, ...]
    image: ImageSpec


def _loaded(source: Path, arch: str | None, classes: Sequence[str] | None, image: ImageSpec | None) -> _Loaded:
    if source.is_dir():
        member = read_member(source / "member.json")
        return _Loaded(model_from_checkpoint(member, source / member.checkpoint), member.classes, member.image)
    if arch is None or classes is None or image is None:
        raise SettingsError(
            f"{source} is a file of weights, which does not say what it is of: state arch, classes, image"
        )
    state = read_state_dict(source)
    if state.note:
        _LOG.warning("%s: %s", source, state.note)
    return _Loaded(model_from_tensors(source, state.tensors, arch, len(classes)), tuple(classes), image)


def _weights(models: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1 / models,) * models if models else ()
    if len(weights) != models:
        raise SettingsError(f"{len(weights)} weights for {models} models; one for each is needed")
    if not all(weight >= 0 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise SettingsError(f"weights are {list(weights)}: each must be 0 or more, and together they must be 1")
    return tuple(float(weight) for weight in weights)


def _voting(voting: str) -> Literal["soft", "hard"]:
    if voting == "soft":
        return "soft"
    if voting == "hard":
        return "hard"
    raise SettingsError(f"voting is {voting!r}: soft or hard is needed; a stacked vote is fitted by plurum fit")
