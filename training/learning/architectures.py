"""Check timm's architecture names, and create models."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plurum.errors import SettingsError, needs_extra
from plurum.models import create_model
from plurum.spec import ImageSpec
from plurum.training.learning.backbones import backbone_from_arch, is_source, quiet_hub, reach_hub, short_name

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_architectures", "check_input", "member_names", "model_from_arch"]


def check_architectures(archs: Sequence[str]) -> None:
    """Check that timm has all of `archs`, and that sources can be read.

    Raises:
        SettingsError: timm lacks an architecture; the message suggests similar names. Or a source can't be read.
        MissingExtraError: timm is not installed.
    """
    with needs_extra("training"):
        import timm
    for arch in archs:
        base, _, tag = (backbone_from_arch(arch).arch if is_source(arch) else arch).partition(".")
        if not timm.is_model(base):
            raise SettingsError(f"timm has no architecture {arch!r}{_suggestion(base)}")
        if tag and not is_source(arch) and arch not in timm.list_pretrained(f"{base}.*"):
            tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
            raise SettingsError(f"timm has no weights {arch!r} for the architecture {base}; available: {tags}")


def member_names(archs: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each training: its architecture or source, with -2, -3, … for repetitions."""
    seen: Counter[str] = Counter()
    names = []
    for arch in archs:
        name = short_name(arch)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


def model_from_arch(arch: str, classes: int, seed: int, *, pretrained: bool = False) -> nn.Module:
    """Return a new model, float32 on the CPU, whose random weights depend on `seed` alone.

    Raises:
        SettingsError: timm's pretrained weights can't be downloaded, or the source can't be used.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if pretrained and not is_source(arch):
            return _pretrained_model(arch, classes)
        backbone = backbone_from_arch(arch)
        model = create_model(backbone.arch, classes, backbone.model_args)
        if pretrained:
            torch.manual_seed(seed)
            try:
                # The member is rebuilt from its metadata, without the source, so it must be trained that way too.
                model.load_state_dict(_pretrained_model(arch, classes).state_dict())
            except RuntimeError as error:
                raise SettingsError(
                    f"--arch: {arch!r} is not the architecture that its config.json states: {_first_line(error)}"
                ) from error
    return model


def _pretrained_model(arch: str, classes: int) -> nn.Module:
    """Return timm's model with pretrained weights, but a random head from PyTorch's global generator."""
    import timm

    try:
        with quiet_hub():
            _reach_weights(arch)
            model: nn.Module = timm.create_model(arch, num_classes=classes, pretrained=True)
    # timm and safetensors have no common base class of errors.
    except Exception as error:
        if arch.startswith("local-dir:"):
            raise SettingsError(f"--arch: the weights of {arch!r} can't be used: {_first_line(error)}") from error
        raise SettingsError(
            f"timm's weights for {arch!r} can't be downloaded from the Hugging Face Hub ({_first_line(error)}); try "
            f"again with a network connection, or train without --pretrained"
        ) from error
    return model


def _reach_weights(arch: str) -> None:
    """Check that the hub is reachable if the weights are there and not cached."""
    import timm

    config = None if is_source(arch) else timm.get_pretrained_cfg(arch)
    repository = arch.removeprefix("hf-hub:") if arch.startswith("hf-hub:") else config and config.hf_hub_id
    if repository:
        reach_hub(repository)


def check_input(model: nn.Module, arch: str, classes: int, image: ImageSpec) -> None:
    """Check that `model` takes images of this size and returns one logit per class.

    Raises:
        SettingsError: the model does not; many transformers take only one size.
    """
    import torch

    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(2, 3, image.height, image.width))
    except Exception as error:  # timm's models have no common base class of errors
        made_for = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
        raise SettingsError(
            f"{arch} can't take images of {image.width} x {image.height} pixels ({_first_line(error)}); it was "
            f"designed for {made_for} x {made_for}. Try --image-size {made_for}, or another --arch"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        raise SettingsError(f"{arch} does not return one logit per class; choose another --arch")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _suggestion(base: str) -> str:
    """Return names similar to `base`, as the end of a sentence."""
    import timm

    if base in timm.list_modules():
        names = timm.list_models(module=base)[:5]
        return f"; this is a family of architectures: {', '.join(names)}, …" if names else ""
    near = difflib.get_close_matches(base.lower(), [*timm.list_models(), *timm.list_modules()], n=5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return "; timm.list_models() lists all, for example resnet18, efficientnet_b0, densenet121"
