"""PyTorch modules from members' metadata and checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from plurum.errors import MetadataError, PlurumError, SettingsError, needs_extra
from plurum.files import sha256_of
from plurum.spec import ImageSpec, Member
from plurum.spellings import nearest_name
from plurum.state_dicts import check_finite, tensors_from_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["create_model", "flops_of_model", "load_tensors", "model_from_checkpoint", "model_from_tensors", "normalise"]

_NAMED = 2
# PyTorch adds it if missing, as in checkpoints from before version 0.4.1.
_OPTIONAL = "num_batches_tracked"
# Arguments of timm.create_model that are not those of an architecture.
_NOT_OF_ARCHITECTURES = {
    *("cache_dir", "checkpoint_path", "exportable", "features_only", "no_jit", "out_indices", "scriptable")
}


def model_from_checkpoint(member: Member, checkpoint: Path) -> nn.Module:
    """Return the member as a module with its weights, on the CPU in float32, in evaluation mode.

    The module maps normalised pixels, float32 `[batch, 3, height, width]`, to logits `[batch, classes]`.

    Raises:
        MetadataError: the file is missing, differs from the one in `member.json`, has NaN, or does not fit the
            architecture.
        MissingExtraError: timm, torch or safetensors is not installed.
    """
    with needs_extra("training", "timm", "torch", "safetensors"):
        pass
    if not checkpoint.is_file():
        raise MetadataError(f"{checkpoint} is missing; train the member {member.name!r} again")
    try:
        if sha256_of(checkpoint) != member.sha256:
            raise MetadataError(f"{checkpoint} is not the file that member.json names: its SHA-256 differs")
        if member.format == "onnx":
            return _model_from_onnx(checkpoint)
        tensors = tensors_from_safetensors(checkpoint)
    except OSError as error:
        raise MetadataError(f"{checkpoint} can't be read: {error.strerror}") from error
    check_finite(checkpoint, tensors)
    try:
        return model_from_tensors(checkpoint, tensors, member.arch, len(member.classes), member.model_args)
    except SettingsError as error:
        raise MetadataError(f"{checkpoint} is of no known architecture: {error}") from error


def create_model(arch: str, classes: int, model_args: Mapping[str, JsonValue] | None = None) -> nn.Module:
    """Return a new model of timm with random weights, on the CPU in float32; nothing is downloaded.

    Args:
        arch: Registered name of the architecture.
        classes: Number of classes, which is the number of logits.
        model_args: Other arguments of the architecture.

    Raises:
        SettingsError: timm has no such architecture, or it does not take the arguments.
    """
    import timm

    # create_model would download other names, or read them from a folder.
    if not timm.is_model(arch):
        raise SettingsError(f"timm has no architecture {arch!r}; timm.list_models() lists all")
    given: dict[str, Any] = dict(model_args or {})
    # These name files to load, or change what the model returns.
    if refused := sorted(name for name in given if name in _NOT_OF_ARCHITECTURES or name.startswith("pretrained")):
        raise SettingsError(f"model_args: expected arguments of the architecture {arch!r}, got {', '.join(refused)}")
    try:
        model: nn.Module = timm.create_model(arch, **{**given, "num_classes": classes})
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"timm can't make {arch!r} for {classes} classes: {reason}") from error
    return model


def model_from_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    arch: str,
    classes: int,
    model_args: Mapping[str, JsonValue] | None = None,
) -> nn.Module:
    """Return a timm model with these weights, on the CPU in float32, in evaluation mode.

    Args:
        path: Source of the weights, for messages.
        tensors: Weights by the architecture's names.
        arch: Architecture for `timm.create_model`; nothing is downloaded.
        classes: Number of classes, which is the number of logits.
        model_args: Other arguments of the architecture.

    Raises:
        SettingsError: timm has no such architecture, or it does not take the arguments.
        MetadataError: the weights don't fit the architecture, the number of classes or of channels.
    """
    return load_tensors(create_model(arch, classes, model_args), path, tensors, arch)


def load_tensors(model: nn.Module, path: Path, tensors: Mapping[str, Tensor], arch: str) -> nn.Module:
    """Return the model with these weights, in evaluation mode.

    Args:
        model: Model, which is changed.
        path: Source of the weights, for messages.
        tensors: Weights by the model's names.
        arch: Name of the architecture, for messages.

    Raises:
        MetadataError: the weights don't fit the model.
    """
    if fault := _misfit(model, tensors):
        raise MetadataError(f"{path} does not fit the architecture {arch!r}: {fault}")
    model.load_state_dict(dict(tensors))
    return model.eval()


def flops_of_model(model: nn.Module, pixels: Tensor) -> int:
    """Return the floating-point operations of a forward pass, two per multiply–add, as PyTorch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixels)
    return int(counter.get_total_flops())


def _model_from_onnx(path: Path) -> nn.Module:
    from plurum.onnx_graphs.module import OnnxModel

    graph = path.read_bytes()
    try:
        return OnnxModel(graph).eval()
    except PlurumError:
        raise
    # ONNX Runtime's errors have no common class.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MetadataError(f"{path} is not a member's graph: {reason}. Add the member again: plurum add") from error


def normalise(pixels: Tensor, image: ImageSpec) -> Tensor:
    """Return uint8 pixels `[batch, height, width, 3]` as normalised float32 `[batch, 3, height, width]`.

    Pixels of another size than the image spec's are resized by Pillow's bilinear filter, as two matrix products: all
    runtimes compute them alike, which can't be said of the ONNX operator Resize with antialiasing.

    Casts first, then transposes, then scales: the order that TensorRT's parser needs.
    """
    import torch

    mean = torch.tensor(image.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(image.std, device=pixels.device).view(1, 3, 1, 1) * 255
    values = pixels.to(torch.float32).permute(0, 3, 1, 2)
    height, width = pixels.shape[1:3]
    if width != image.width:
        values = values @ torch.tensor(_resize_weights(width, image.width), device=pixels.device).T
    if height != image.height:
        values = torch.tensor(_resize_weights(height, image.height), device=pixels.device) @ values
    return (values - mean) / std


@functools.cache
def _resize_weights(size: int, target: int) -> npt.NDArray[np.float32]:
    """Return the weights of each of `size` pixels in each of `target`, float32 `[target, size]`; rows sum to 1."""
    step = size / target
    centres = (np.arange(target)[:, None] + 0.5) * step
    distances = np.abs(np.arange(size)[None] + 0.5 - centres) / max(step, 1.0)
    weights = np.clip(1 - distances, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _misfit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return how the weights differ from the model's; empty if they fit."""
    expected: dict[str, Tensor] = model.state_dict()
    shared = [name for name in expected if name in tensors]
    shapes = {name: (list(tensors[name].shape), list(expected[name].shape)) for name in shared}
    others = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    layers: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    for name in (f"{layer}.weight" for layer in _names(layers.get("classifier"))):
        if name in others and others[name][0][1:] == others[name][1][1:]:
            got, needed = (shape[0] for shape in others[name])
            return f"it has {got:,} classes ({name} is {others[name][0]}); expected {needed:,}"
    for name in (f"{layer}.weight" for layer in _names(layers.get("first_conv"))):
        if name in others and others[name][0][:1] == others[name][1][:1] and len(others[name][0]) > 1:
            got, needed = (shape[1] for shape in others[name])
            return f"its first layer takes {got} channels ({name} is {others[name][0]}), but images have {needed}"
    kinds = [name for name in shared if tensors[name].is_floating_point() != expected[name].is_floating_point()]
    faults = {
        "missing": [name for name in expected if name not in tensors and not name.endswith(_OPTIONAL)],
        "unexpected": [name for name in tensors if name not in expected],
        "with another shape": [f"{name}: {pair[0]}, not {pair[1]}" for name, pair in others.items()],
        "with another type": [f"{name}: {tensors[name].dtype}, not {expected[name].dtype}" for name in kinds],
    }
    if not faults["missing"] and not faults["unexpected"] and (sizes := _head_sizes(list(others.values()))):
        got, needed = sizes
        name, shape = next((name, pair[0]) for name, pair in others.items() if len(pair[0]) > 1)
        return f"it has {got:,} classes ({name} is {shape}); expected {needed:,}"
    if near := faults["missing"] and nearest_name(faults["missing"][0], faults["unexpected"]):
        faults["missing"][0] += f", nearest: {near}"
    counted = [f"{len(names):,} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    return f"of {len(expected):,} tensors, {', '.join(counted)}" if counted else ""


def _head_sizes(shapes: list[tuple[list[int], list[int]]]) -> tuple[int, int] | None:
    """Return the numbers of classes, got and expected, if shapes differ in these alone."""
    sizes = {(got[0], needed[0]) for got, needed in shapes if got and needed and got[1:] == needed[1:]}
    is_head = len(sizes) == 1 and all(got[1:] == needed[1:] for got, needed in shapes)
    return sizes.pop() if is_head and any(len(got) > 1 for got, _ in shapes) else None


def _names(layers: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the layer names of timm's config, which holds one, several or none."""
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
