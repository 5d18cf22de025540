"""Check timm's architecture names, and create models."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plurum.errors import SettingsError, needs_extra
from plurum.spec import ImageSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_architectures", "check_input", "member_names", "model_from_arch"]

# timm uses the first of these that exists.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_REACH_S = 10.0


def check_architectures(archs: Sequence[str]) -> None:
    """Check that timm has all of `archs`.

    Raises:
        SettingsError: timm lacks an architecture; the message suggests similar names.
        MissingExtraError: timm is not installed.
    """
    with needs_extra("training"):
        import timm
    for arch in archs:
        base, _, tag = arch.partition(".")
        if not timm.is_model(base):
            raise SettingsError(f"timm has no architecture {arch!r}{_suggestion(base)}")
        if tag and arch not in timm.list_pretrained(f"{base}.*"):
            tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
            raise SettingsError(f"timm has no weights {arch!r} for the architecture {base}; available: {tags}")


def member_names(archs: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each training: its architecture, with -2, -3, … for repetitions."""
    seen: Counter[str] = Counter()
    names = []
    for arch in archs:
        seen[arch] += 1
        names.append(arch if seen[arch] == 1 else f"{arch}-{seen[arch]}")
    return tuple(names)


def model_from_arch(arch: str, classes: int, seed: int, *, pretrained: bool = False) -> nn.Module:
    """Return a new model, float32 on the CPU, whose random weights depend on `seed` alone.

    Raises:
        SettingsError: timm's pretrained weights can't be downloaded.
    """
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not pretrained:
            return timm.create_model(arch, num_classes=classes)
        try:
            with _quiet_hub():
                _reach_hub(arch)
                return timm.create_model(arch, num_classes=classes, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"timm's weights for {arch!r} can't be downloaded from the Hugging Face Hub "
                f"({str(error).splitlines()[0]}); try again with a network connection, or train without --pretrained"
            ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Suppress the hub client's log messages about each attempt, for the duration of a block."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reach_hub(arch: str) -> None:
    """Check that the hub is reachable, unless the weights are cached; its client would retry for over a minute."""
    import timm
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache

    config = timm.get_pretrained_cfg(arch)
    repository = config.hf_hub_id if config else None
    if not repository or any(isinstance(try_to_load_from_cache(repository, name), str) for name in _WEIGHT_FILES):
        return
    try:
        get_session().head(hf_hub_url(repository, _WEIGHT_FILES[0]), timeout=_REACH_S)
    except Exception as error:  # of requests or of httpx, depending on the client's version
        raise OSError(f"the hub can't be reached: {error}") from error


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"{arch} can't take images of {image.width} x {image.height} pixels ({reason}); it was designed for "
            f"{made_for} x {made_for}. Try --image-size {made_for}, or another --arch"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        raise SettingsError(f"{arch} does not return one logit per class; choose another --arch")


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
