"""Costs of the members of a cascade, which order them: multiply–adds, or the time of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plurum.errors import SettingsError
from plurum.models import flops_of_model, model_from_checkpoint
from plurum.onnx_graphs.costs import multiply_adds
from plurum.run import Run
from plurum.spec import Member

__all__ = ["cost_fractions", "multiply_adds_of_member", "time_fractions"]


def cost_fractions(run: Run, members: Sequence[Member]) -> tuple[float, ...]:
    """Return the multiply–adds of each member as a fraction of those of all.

    Raises:
        MetadataError: a member is invalid.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    # A model without convolutions and matrices counts nothing.
    work = [max(multiply_adds_of_member(run, member), 1) for member in members]
    return tuple(one / sum(work) for one in work)


def time_fractions(members: Sequence[Member], times_ms: Mapping[str, float]) -> tuple[float, ...]:
    """Return the time of each member as a fraction of that of all.

    Raises:
        SettingsError: the time of a member is missing.
    """
    if missing := [member.name for member in members if member.name not in times_ms]:
        raise SettingsError(
            f"--cascade-costs: expected a repository with all members of the vote, got one without "
            f"{', '.join(missing)}. Export the run again."
        )
    times = [times_ms[member.name] for member in members]
    return tuple(one / sum(times) for one in times)


def multiply_adds_of_member(run: Run, member: Member) -> int:
    """Return the multiply–adds of a member for one image.

    Raises:
        MetadataError: the member is invalid.
        MissingExtraError: PyTorch, timm or safetensors is not installed.
    """
    import torch

    checkpoint = run.checkpoint(member)
    if member.format == "onnx":
        return multiply_adds(checkpoint)
    pixels = torch.zeros(1, 3, member.image.height, member.image.width)
    return flops_of_model(model_from_checkpoint(member, checkpoint), pixels) // 2
