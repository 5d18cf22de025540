"""Write the members of a run for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file

from plurum.files import sha256_of
from plurum.run import Run
from plurum.spec import ImageSpec, Member, write_metadata

__all__ = ["write_member"]


def write_member(
    run: Run,
    model: torch.nn.Module,
    arch: str,
    classes: tuple[str, ...],
    image: ImageSpec,
    facts: Mapping[str, Any] | None = None,
) -> Member:
    """Write a model's weights and metadata, named like its architecture, and return the metadata with `facts`."""
    folder = run.member_folder(arch)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "checkpoint.safetensors")
    member = Member(
        name=arch,
        arch=arch,
        sha256=sha256_of(folder / "checkpoint.safetensors"),
        classes=classes,
        image=image,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **(facts or {}),
    )
    write_metadata(folder / "member.json", member)
    return member
