"""Freeze a model's backbone: train its classifying layer alone, or its last layers too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plurum.detectors import FeatureModel
from plurum.errors import NoFeaturesError, SettingsError
from plurum.models import normalise
from plurum.predictions.arrays import Ints
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec
from plurum.training.data.examples import Examples
from plurum.training.data.store import fingerprint_from_pixels
from plurum.training.learning.augmentation import augment, erase
from plurum.training.learning.feature_cache import Features, compute_features
from plurum.training.learning.head_step import FeatureExamples, rows_of_features
from plurum.training.learning.optimizer_step import copy_state
from plurum.training.learning.resume import StateFile
from plurum.training.learning.trainer import TrainedModel, Trainer

__all__ = ["FrozenBackbone", "fit_model", "freeze_layers"]

_BATCH = 64
# Fields of the settings that versions of an image depend on.
_OF_VIEWS = (
    "seed",
    "colour",
    "shift",
    "flip",
    "rotate",
    "jitter",
    "gamma",
    "blur",
    "noise",
    "elastic",
    "erase",
    "trivial_augment",
)


def freeze_layers(model: nn.Module, last: int) -> None:
    """Freeze a model of timm, except for its head and the `last` layers before it, such as a transformer's blocks.

    Raises:
        SettingsError: the model has fewer layers, or timm does not know them.
    """
    from timm.models import group_parameters

    timm_model: Any = model
    if not hasattr(model, "group_matcher"):
        raise SettingsError("--unfreeze-last: expected an architecture whose layers timm lists, got another one")
    names = group_parameters(model, timm_model.group_matcher(coarse=False))
    layers = sorted(names)
    if last >= len(layers) - 1:
        raise SettingsError(f"--unfreeze-last: expected at most {len(layers) - 2}, got {last}")
    trained = {name for layer in layers[-1 - last :] for name in names[layer]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


class FrozenBackbone:
    """Model whose classifying layer alone is trained, on features that are computed once.

    Attributes:
        head: Layer to train, features `[batch, features]` → logits `[batch, classes]`, with the model's own weights.

    Args:
        model: Model that takes normalised pixels and returns logits.

    Raises:
        SettingsError: the model has no linear layer that returns the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        try:
            self._model = FeatureModel(model).eval()
        except NoFeaturesError as error:
            raise _refusal(str(error)) from error
        layer = self._model.layer
        self._prefix = next(name for name, module in model.named_modules() if module is layer)
        self.head = nn.Linear(layer.weight[0].numel(), layer.weight.shape[0], bias=layer.bias is not None)
        self.head.load_state_dict(
            {name: value.reshape(self.head.state_dict()[name].shape) for name, value in layer.state_dict().items()},
            strict=True,
        )

    def check(self, image: ImageSpec) -> None:
        """Check that the layer returns the model's logits.

        Raises:
            SettingsError: the model has no features, or changes what the layer returns.
        """
        try:
            with torch.inference_mode():
                logits, features = self._model(torch.randn(2, 3, image.height, image.width))
                is_same = torch.allclose(self.head(features), logits, rtol=1e-3, atol=1e-3)
        except NoFeaturesError as error:
            raise _refusal(str(error)) from error
        if not is_same:
            raise _refusal("it changes what its last linear layer returns")

    def examples(
        self, examples: Examples, settings: TrainSettings, progress: Callable[[int, str], None]
    ) -> FeatureExamples:
        """Return the features of the examples, from the cache or computed in FP32.

        Args:
            examples: Labelled images.
            settings: Settings that state the versions of each training image and their augmentation.
            progress: Called with 0 and a note.

        Raises:
            OutputError: the cache can't be written.
            SettingsError: features are not finite.
        """
        batches = _plan_batches(examples, settings.views)
        total = sum(len(rows) for rows, _ in batches)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self._model.to(device)

        def compute(number: int) -> Features:
            rows, is_augmented = batches[number]
            images = _images(examples, settings, rows, number if is_augmented else None)
            with torch.inference_mode():
                features = model(images.to(device))[1].cpu()
            if not features.isfinite().all():
                raise SettingsError("--freeze: expected finite features, got NaN or infinity. Use other weights")
            found: Features = features.numpy()
            return found

        features = compute_features(
            self._key(examples, settings),
            self.head.in_features,
            [len(rows) for rows, _ in batches],
            compute,
            lambda done: progress(0, f"features of {done:,} of {total:,} images"),
        )
        fields = {field.name: getattr(examples, field.name) for field in dataclasses.fields(Examples)}
        return FeatureExamples(**fields, features=features, views=settings.views)

    def merge(self, trained: TrainedModel) -> TrainedModel:
        """Return the training of the head as one of the model."""
        state = copy_state(self._model.model)

        def whole(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            named = {f"{self._prefix}.{name}".lstrip("."): value for name, value in weights.items()}
            return state | {name: value.reshape(state[name].shape) for name, value in named.items()}

        return dataclasses.replace(
            trained,
            snapshots=tuple(dataclasses.replace(one, weights=whole(one.weights)) for one in trained.snapshots),
            parameters=sum(parameter.numel() for parameter in self._model.model.parameters()),
        )

    def _key(self, examples: Examples, settings: TrainSettings) -> str:
        """Return the SHA-256 of everything that the features depend on."""
        views = {name: getattr(settings, name) for name in _OF_VIEWS} if settings.views > 1 else {}
        fingerprint = examples.fingerprint or fingerprint_from_pixels(examples.pixels, examples.labels)
        # The text of a model states its structure, which weights alone don't.
        stated = [str(self._model.model), fingerprint, examples.image.model_dump(mode="json"), settings.views, views]
        digest = hashlib.sha256(json.dumps(stated).encode())
        rows, augmented = rows_of_features(examples)
        for part in (rows, augmented) if settings.views > 1 else (rows,):
            digest.update(part.tobytes() + b"|")
        for name, tensor in copy_state(self._model.model).items():
            if name.rpartition(".")[0] != self._prefix:
                digest.update(name.encode())
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def fit_model(
    trainer: Trainer,
    model: nn.Module,
    examples: Examples,
    seed: int | None = None,
    *,
    state: StateFile | None = None,
    events: Path | None = None,
    progress: Callable[[int, str], None] = lambda _count, _note: None,
) -> TrainedModel:
    """Train a model as `Trainer.fit` does, or only the parts of it that the trainer's settings leave.

    Raises:
        SettingsError: as `Trainer.fit`; or the settings freeze what the model does not have.
        OutputError: as `Trainer.fit`; or features can't be cached.
    """
    settings = trainer.settings
    if settings.unfreeze_last:
        freeze_layers(model, settings.unfreeze_last)
    if not settings.uses_features:
        return trainer.fit(model, examples, seed, state=state, events=events, progress=progress)
    frozen = FrozenBackbone(model)
    features = frozen.examples(examples, settings, progress)
    return frozen.merge(trainer.fit(frozen.head, features, seed, state=state, events=events, progress=progress))


def _refusal(reason: str) -> SettingsError:
    return SettingsError(f"--freeze: expected a model that ends in a linear layer: {reason}. Add --unfreeze-last 1")


def _plan_batches(examples: Examples, views: int) -> list[tuple[Ints, bool]]:
    """Return the images of each batch, and True for those that are augmented."""
    rows, augmented = rows_of_features(examples)
    passes = [(rows, False), *[(augmented, True)] * (views - 1)]
    return [
        (part[start : start + _BATCH], is_augmented)
        for part, is_augmented in passes
        for start in range(0, len(part), _BATCH)
    ]


def _images(examples: Examples, settings: TrainSettings, rows: Ints, number: int | None) -> torch.Tensor:
    """Return normalised images `[rows, 3, height, width]`; augmented if they are the batch of a `number`."""
    pixels = torch.from_numpy(np.array(examples.pixels[rows]))
    if number is None:
        return normalise(pixels, examples.image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]))
        return erase(normalise(augment(pixels, settings), examples.image), settings)
