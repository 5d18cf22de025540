"""Detectors of outliers among images, by the features of a member's last layer.

Legend: images are normalised pixels, float32 `[batch, 3, height, width]`; features are the inputs of a model's
classifying layer, float32 `[batch, features]`; novelty is float32 `[batch, 1]`, and higher is less like the training
images. Importing this module needs PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from plurum.errors import MetadataError, NoFeaturesError
from plurum.files import write_bytes
from plurum.state_dicts import check_finite, tensors_from_safetensors

__all__ = ["KIND", "Detector", "FeatureModel", "read_detector", "write_detector"]

# Kind of detector in the header of its file.
KIND = "mahalanobis"
_KEY = "detector"


class FeatureModel(nn.Module):
    """Model with its features as a second output, from one forward pass.

    Args:
        model: Model that returns logits `[batch, classes]`. Its classifying layer is the one that timm names, or the
            last linear layer.

    Raises:
        NoFeaturesError: the model has no linear layer that returns the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # In a list, so that the layer's weights don't count twice.
        self._layers = [_classifying_layer(model)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, equal to the model's, and the features.

        Raises:
            NoFeaturesError: the layer does not turn one vector per image into the logits.
        """
        layer, inputs = self._layers[0], []
        hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            logits: Tensor = self.model(images)
        finally:
            hook.remove()
        width, outputs = layer.weight.shape[1], layer.weight.shape[0]
        if len(inputs) != 1 or inputs[0].shape[0] != images.shape[0] or inputs[0].shape[1:].numel() != width:
            raise NoFeaturesError("the last linear layer does not take one vector per image")
        if outputs != logits.shape[-1]:
            raise NoFeaturesError(f"the last linear layer returns {outputs} values, not {logits.shape[-1]} logits")
        return logits, inputs[0].flatten(1).float()


class Detector(nn.Module):
    """Distance of features from the nearest class of the training images (Mahalanobis; arXiv 1807.03888).

    Args:
        centre: Mean of the training features, `[features]`.
        projection: Matrix that whitens centred features, `[features, rank]`.
        means: Whitened means of the classes, `[classes, rank]`.
        shift: Mean of the validation images' distances.
        scale: Standard deviation of the validation images' distances.
    """

    centre: Tensor
    projection: Tensor
    means: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self, centre: Tensor, projection: Tensor, means: Tensor, *, shift: float | Tensor = 0, scale: float | Tensor = 1
    ) -> None:
        super().__init__()
        self.register_buffer("centre", centre.float())
        self.register_buffer("projection", projection.float().contiguous())
        self.register_buffer("means", means.float())
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Return the novelty of features; NaN for NaN."""
        whitened = (features - self.centre) @ self.projection
        distances = (whitened.unsqueeze(1) - self.means).square().sum(dim=-1)
        return (distances.amin(dim=-1, keepdim=True) - self.shift) / self.scale


def write_detector(path: Path, detector: Detector) -> None:
    """Write a detector to the safetensors file `path`, atomically; the same detector gives the same bytes.

    Raises:
        OutputError: the file can't be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_bytes(path, save(tensors, {_KEY: KIND}))


def read_detector(path: Path) -> Detector:
    """Return the detector in the file `path`, on the CPU, in evaluation mode.

    Raises:
        MetadataError: the file is missing or corrupt, or has another kind of detector, other tensors, or NaN.
    """
    fix = "Fit the run again: plurum fit RUN"
    try:
        tensors = tensors_from_safetensors(path)
        with safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as error:
        raise MetadataError(f"{path}: expected a detector, got no file that can be read: {error}. {fix}") from error
    if kind != KIND:
        raise MetadataError(f"{path}: expected a detector of the kind {KIND}, got {kind or 'another file'}. {fix}")
    check_finite(path, tensors)
    if fault := _misfit(tensors):
        raise MetadataError(f"{path}: expected a detector, got {fault}. {fix}")
    return Detector(**tensors).eval()


def _misfit(tensors: dict[str, Tensor]) -> str:
    """Return how the tensors differ from a detector's; empty if they don't."""
    names = {"centre", "projection", "means", "shift", "scale"}
    if set(tensors) != names:
        return f"tensors {', '.join(sorted(tensors)) or 'of no name'}"
    dimensions = {name: tensor.ndim for name, tensor in tensors.items()}
    if dimensions != {"centre": 1, "projection": 2, "means": 2, "shift": 0, "scale": 0}:
        return "tensors of other shapes"
    features, rank = tensors["projection"].shape
    if tensors["centre"].shape != (features,) or tensors["means"].shape[1] != rank or not tensors["means"].shape[0]:
        return "tensors whose shapes do not agree"
    return "" if tensors["scale"] > 0 else f"a scale of {float(tensors['scale']):g}"


def _classifying_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the layer that timm names, else the last linear one; timm's may be a convolution of one pixel."""
    timm_model: Any = model
    named = timm_model.get_classifier() if hasattr(model, "get_classifier") else None
    # Distilled models have two, of which the first takes the class token.
    first = named[0] if isinstance(named, tuple | list | nn.ModuleList) and len(named) else named
    if isinstance(first, nn.Linear | nn.Conv2d):
        return first
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise NoFeaturesError("the model has no linear layer")
    return linear[-1]
