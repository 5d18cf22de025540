"""Weights of other programs for a module: names are matched, and what was left out is told."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from plurum.errors import MetadataError
from plurum.models import load_tensors
from plurum.state_dicts import PREFIXES, common_prefix, read_state_dict

__all__ = ["load_weights"]

_NAMED = 3
# Attributes in which training programs keep averaged weights.
_AVERAGED = {"ema", "ema_model", "model_ema", "averaged_model", "swa_model"}


def load_weights(model: nn.Module, path: Path, arch: str) -> list[str]:
    """Load the weights in the file `path` into the model, and return notes on how they were matched.

    A prefix before all names is removed. Other tensors, such as a loss's or a metric's, are left out if those under one
    prefix are all that the model needs.

    Args:
        model: Model, which is changed and set to evaluation mode.
        path: File of safetensors or `torch.save`; no code in it is run.
        arch: Name of the architecture, for messages.

    Raises:
        MetadataError: the file is no state dict, needs code to be read, does not fit the model, or holds several.
    """
    state = read_state_dict(path)
    notes = [state.note] if state.note else []
    expected = list(model.state_dict())
    # The model's own names may begin with such a prefix, too.
    own = common_prefix(expected)
    needed = {name.removeprefix(own) for name in expected if name.rpartition(".")[2] != "num_batches_tracked"}
    tensors, prefix = state.tensors, state.prefix
    if not needed <= set(tensors):
        part = _part_under_prefix(path, tensors, needed)
        if part is not None:
            left = [name for name in tensors if not name.startswith(part)]
            if left:
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


def _part_under_prefix(path: Path, tensors: dict[str, Tensor], needed: set[str]) -> str | None:
    """Return the prefix under which all needed tensors are; None without one.

    Of several, averaged weights (EMA) come first, then the prefixes that other programs are known to use.

    Raises:
        MetadataError: the tensors of several models are under names that say nothing about them.
    """
    longest = max(needed, key=len)
    possible = [name.removesuffix(longest) for name in tensors if name.endswith(f".{longest}")]
    found = [prefix for prefix in possible if all(prefix + name in tensors for name in needed)]
    averaged = [prefix for prefix in found if _AVERAGED & set(prefix.split("."))]
    known = [prefix for prefix in found if all(f"{part}." in PREFIXES for part in prefix.split(".")[:-1])]
    first = averaged or known or found
    if len(first) > 1:
        raise MetadataError(f"{path} has the model's tensors under {_some(first)}. Save the state dict of one of them.")
    return first[0] if first else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
