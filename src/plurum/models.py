"""From a member's contract and checkpoint to a PyTorch module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plurum.errors import ContractError, needs_extra
from plurum.files import sha256_of
from plurum.spec import ImageSpec, Member

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["model_from_checkpoint", "normalised"]


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
