"""Detectors of outliers among images, by the features of a member's last layer.

Legend: images are normalised pixels, float32 `[batch, 3, height, width]`; features are the inputs of a model's
classifying layer, float32 `[batch, features]`; novelty is float32 `[batch, 1]`, and higher is less like the training
images. Importing this module needs PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from plurum.errors import MetadataError, NoFeaturesError
from plurum.files import sha256_of, write_bytes
from plurum.onnx_graphs.module import OnnxModel
from plurum.state_dicts import check_finite, tensors_from_safetensors

__all__ = ["KIND", "Detector", "FeatureModel", "read_detector", "write_detector"]

# Kind of detector in the header of its file.
KIND = "mahalanobis"
_KEY = "detector"
# Tensors of a detector, with their dimensions.
_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "centre": ("features",),
    "axes": ("features", "axes"),
    "means": ("classes", "axes"),
    "deviations": ("axes",),
    "residual": (),
    "shift": (),
    "scale": (),
}


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
        if isinstance(model, OnnxModel):
            if not model.has_features:
                raise NoFeaturesError("its ONNX graph does not end in a linear layer")
            return
        # In a list, so that the layer's weights don't count twice.
        self._layers = [_classifying_layer(model)]

    @property
    def layer(self) -> nn.Linear | nn.Conv2d:
        """Classifying layer."""
        return self._layers[0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, equal to the model's, and the features.

        Raises:
            NoFeaturesError: the layer does not turn one vector per image into the logits.
        """
        if isinstance(self.model, OnnxModel):
            return self.model.logits_and_features(images)
        layer, inputs = self.layer, []
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
    """Mahalanobis distance of features from the nearest class of the training images (arXiv 1807.03888).

    The covariance within classes is that of a probabilistic PCA (Tipping and Bishop 1999): one variance per principal
    axis, and one for what the axes leave. So the distance costs two products with the axes, and no square matrix.

    Args:
        centre: Mean of the training features, `[features]`.
        axes: Orthonormal principal axes of the training features, `[features, axes]`.
        means: Mean of each class on the axes, `[classes, axes]`.
        deviations: Standard deviation within classes on each axis, `[axes]`.
        residual: Standard deviation of a feature that the axes leave.
        shift: Mean distance of the validation images.
        scale: Standard deviation of the validation images' distances.
    """

    centre: Tensor
    axes: Tensor
    means: Tensor
    deviations: Tensor
    residual: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name in _DIMENSIONS:
            self.register_buffer(name, tensors[name].float().contiguous())

    def forward(self, features: Tensor) -> Tensor:
        """Return the novelty of features; NaN for NaN."""
        centred = features - self.centre
        placed = centred @ self.axes
        # Not as a difference of squared lengths, which rounding would spoil.
        left = ((centred - placed @ self.axes.T) / self.residual).square().sum(dim=-1, keepdim=True)
        distances = ((placed.unsqueeze(1) - self.means) / self.deviations).square().sum(dim=-1)
        return (distances.amin(dim=-1, keepdim=True) + left - self.shift) / self.scale


def write_detector(path: Path, detector: Detector) -> None:
    """Write a detector to the safetensors file `path`, atomically; the same detector gives the same bytes.

    Raises:
        OutputError: the file can't be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_bytes(path, save(tensors, {_KEY: KIND}))


def read_detector(path: Path, sha256: str | None = None) -> Detector:
    """Return the detector in the file `path`, on the CPU, in evaluation mode.

    Args:
        path: File of the detector.
        sha256: SHA-256 of the file that the fit wrote; None accepts any.

    Raises:
        MetadataError: the file is missing, corrupt or changed, or has another kind of detector, other tensors, or NaN.
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
    if sha256 is not None and sha256_of(path) != sha256:
        raise MetadataError(f"{path}: expected the detector that the fit wrote, got a changed file. {fix}")
    return Detector(**tensors).eval()


def _misfit(tensors: dict[str, Tensor]) -> str:
    """Return how the tensors differ from a detector's; empty if they don't."""
    if set(tensors) != set(_DIMENSIONS):
        return f"tensors {', '.join(sorted(tensors)) or 'of no name'}"
    sizes: dict[str, int] = {}
    for name, dimensions in _DIMENSIONS.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != len(dimensions) or any(
            size < 1 or sizes.setdefault(dimension, size) != size
            for dimension, size in zip(dimensions, shape, strict=True)
        ):
            return f"{name} of the shape {list(shape)}"
    divisors = [name for name in ("deviations", "residual", "scale") if not (tensors[name] > 0).all()]
    return f"{divisors[0]} with values that are not above 0" if divisors else ""


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
