"""PyTorch modules from members' metadata and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from plurum.errors import MetadataError, SettingsError, needs_extra
from plurum.files import sha256_of
from plurum.spec import ImageSpec, Member
from plurum.state_dicts import check_finite, tensors_from_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["create_model", "model_from_checkpoint", "model_from_tensors", "normalise"]

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
    model = create_model(arch, classes, model_args)
    if fault := _misfit(model, tensors):
        raise MetadataError(f"{path} does not fit the architecture {arch!r}: {fault}")
    model.load_state_dict(dict(tensors))
    return model.eval()


def normalise(pixels: Tensor, image: ImageSpec) -> Tensor:
    """Return uint8 pixels `[batch, height, width, 3]` as normalised float32 `[batch, 3, height, width]`.

    Casts first, then transposes, then scales: the order that TensorRT's parser needs.
    """
    import torch

    mean = torch.tensor(image.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(image.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.to(torch.float32).permute(0, 3, 1, 2) - mean) / std


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
    counted = [f"{len(names):,} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    return f"of {len(expected):,} tensors, {', '.join(counted)}" if counted else ""


def _names(layers: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the layer names of timm's config, which holds one, several or none."""
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
