"""From a member's contract and checkpoint to a PyTorch module."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plurum.errors import ContractError, needs_extra
from plurum.files import sha256_of
from plurum.spec import ImageSpec, Member

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["model_from_checkpoint", "normalised", "state_from_file"]

# Under which of these other programs keep the weights, beside optimisers and counters.
_NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema")


def model_from_checkpoint(member: Member, checkpoint: Path) -> nn.Module:
    """Return the member with its weights, on the CPU in float32, in evaluation mode.

    It takes normalised pixels, float32 `[batch, 3, height, width]`, and answers logits `[batch, classes]`.

    Raises:
        ContractError: the file is missing, not the one the contract names, or does not fit the architecture.
        MissingExtraError: timm, torch or safetensors is not installed.
    """
    with needs_extra("training"):
        import timm
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    if not checkpoint.is_file():
        raise ContractError(f"{checkpoint} is missing; train the member {member.name!r} again")
    if sha256_of(checkpoint) != member.sha256:
        raise ContractError(f"{checkpoint} is not the file that member.json names: its SHA-256 is another")
    try:
        model: nn.Module = timm.create_model(member.arch, num_classes=len(member.classes))
        model.load_state_dict(load_file(checkpoint))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ContractError(f"{checkpoint} does not fit the architecture {member.arch!r}: {reason}") from error
    return model.eval()


def normalised(pixels: Tensor, image: ImageSpec) -> Tensor:
    """Return uint8 pixels `[batch, height, width, 3]` as float32 `[batch, 3, height, width]`, normalised.

    In the order that TensorRT's parser takes: cast first, then transpose, then scale.
    """
    import torch

    mean = torch.tensor(image.mean, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(image.std, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.to(torch.float32).permute(0, 3, 1, 2) - mean) / std


def state_from_file(path: Path) -> dict[str, Any]:
    """Return the state dict that a file holds: parameter names and tensors.

    Raises:
        ContractError: it holds none, or is a pickle of more than tensors, which is not run.
        MissingExtraError: torch or safetensors is not installed.
    """
    with needs_extra("training"):
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    if not path.is_file():
        raise ContractError(f"{path} is no file; name a checkpoint, or a run's folder")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ContractError(
            f"{path} is no checkpoint that can be read without running code in it; save a state dict: "
            f"torch.save(model.state_dict(), ...) or safetensors"
        ) from error
    for key in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ContractError(f"{path} holds no state dict; save model.state_dict(): tensors by their names")
    # As torch.nn.DataParallel and torch.compile write them.
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in held.items()}
