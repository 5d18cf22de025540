"""Weights of other programs for a module: names are matched, and what was left out is told."""

from __future__ import annotations

import itertools
from pathlib import Path

from torch import Tensor, nn

from plurum.models import load_tensors
from plurum.state_dicts import PREFIXES, common_prefix, read_state_dict

__all__ = ["load_weights"]

_NAMED = 3


def load_weights(model: nn.Module, path: Path, arch: str) -> list[str]:
    """Load the weights in the file `path` into the model, and return notes on how they were matched.

    Prefixes that other programs put before all names are removed. Other tensors, such as a loss's or a metric's, are
    left out if those under one prefix are all that the model needs.

    Args:
        model: Model, which is changed and set to evaluation mode.
        path: File of safetensors or `torch.save`; no code in it is run.
        arch: Name of the architecture, for messages.

    Raises:
        MetadataError: the file is no state dict, needs code to be read, or does not fit the model.
    """
    state = read_state_dict(path)
    notes = [state.note] if state.note else []
    expected = list(model.state_dict())
    # The model's own names may begin with such a prefix, too.
    own = common_prefix(expected)
    needed = {name.removeprefix(own) for name in expected if name.rpartition(".")[2] != "num_batches_tracked"}
    tensors, prefix = state.tensors, state.prefix
    if not needed <= set(tensors):
        part = _part_under_prefix(tensors, needed)
        if part is not None:
            left = [name for name in tensors if not name.startswith(part)]
            notes.append(f"left out {len(left):,} tensors that the model does not have ({_some(left)})")
            tensors = {name.removeprefix(part): tensors[name] for name in tensors if name.startswith(part)}
            prefix += part
    if prefix != own:
        notes.append(
            f"the weights' names begin with {prefix!r}, the model's with {own!r}"
            if own
            else f"removed the prefix {prefix!r}"
        )
    load_tensors(model, path, {own + name: value for name, value in tensors.items()}, arch)
    return notes


def _part_under_prefix(tensors: dict[str, Tensor], needed: set[str]) -> str | None:
    """Return the prefix under which all needed tensors are; None without one."""
    pairs = ("".join(pair) for pair in itertools.product(PREFIXES, PREFIXES))
    return next((one for one in (*PREFIXES, *pairs) if all(one + name in tensors for name in needed)), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
