"""Reading of untrusted checkpoint files: no code in them is run, and their tensors are validated."""

from __future__ import annotations

import argparse
import json
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plurum.errors import MetadataError, needs_extra
from plurum.regular_files import check_regular

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PREFIXES", "StateDict", "check_finite", "common_prefix", "read_state_dict", "tensors_from_safetensors"]

# Keys under which other programs store the weights; the first one present is used. Averaged weights (EMA) come first,
# as in timm.
_NESTED = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
    *("state_dict", "model", "model_state_dict", "model_state"),
)
# Prefixes that DataParallel, torch.compile, Lightning and others add to all names.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
# torch.optim.swa_utils.AveragedModel stores this count beside the weights.
_COUNTER = "n_averaged"
_NAMED = 3
# The limit of the safetensors library.
_MAX_HEADER = 100_000_000
_FIX = "save a state dict: torch.save(model.state_dict(), ...) or safetensors"


@dataclass(frozen=True)
class StateDict:
    """State dict of a model, read from a checkpoint.

    Attributes:
        tensors: Tensors by the names of the unwrapped model; dense, finite, on the CPU.
        note: Which weights were used if the file holds several; empty otherwise.
        prefix: Prefix that was removed from all names; empty without one.
    """

    tensors: dict[str, Tensor]
    note: str = ""
    prefix: str = ""


def read_state_dict(path: Path) -> StateDict:
    """Return the state dict in a file of safetensors or `torch.save`.

    Never runs code in the file. Prefers averaged weights (EMA) to others.

    Raises:
        MetadataError: the file has no state dict, has more than tensors, or has tensors that are not plain finite
            numbers.
        MissingExtraError: torch or safetensors is not installed.
    """
    with needs_extra("training", "torch", "safetensors"):
        pass
    try:
        size = check_regular(path).st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise MetadataError(f"{path} is not a file ({error.strerror}); name a checkpoint, or a run's folder") from error
    if start[8:] == b"{":
        return _clean(path, tensors_from_safetensors(path), "", size)
    if not start.startswith((b"PK\3\4", b"\x80")):
        raise MetadataError(f"{path} is not a checkpoint, neither of safetensors nor of torch.save; {_FIX}")
    held, note = _weights(path, _unpickle(path))
    return _clean(path, held, note, size)


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        MetadataError: the file is corrupt, or names a tensor twice.
        OSError: the file can't be read.
    """
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, _MAX_HEADER))
        # The library silently keeps the last of several tensors with the same name.
        json.loads(header, object_pairs_hook=_distinct)
        return dict(load_file(path))
    except OSError:
        raise
    # A corrupt file can make the library raise any exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MetadataError(f"{path} is not a checkpoint: its safetensors are corrupt ({reason})") from error


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all values are finite in float32, the type that members compute in.

    Raises:
        MetadataError: some values are not finite; the message names the first such tensor.
    """
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.to(torch.float32)
        if not torch.isfinite(values).all():
            nan, wrong = int(values.isnan().sum()), int((~torch.isfinite(values)).sum())
            raise MetadataError(
                f"{path} has weights that are not finite: {name!r} holds {nan:,} NaN and {wrong - nan:,} infinite "
                f"values, of {values.numel():,}; its training diverged: use an earlier checkpoint"
            )


def _unpickle(path: Path) -> object:
    """Return the content of a `torch.save` file, if it has only tensors and plain values."""
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise MetadataError(f"{path} is not a checkpoint: it is a compressed ZIP; {_FIX}")
        # timm stores its training options as a Namespace. PyTorch warns of TorchScript, which it refuses.
        # Pass a file, as torch.load interprets the suffix of a path.
        with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except MetadataError:
        raise
    # On untrusted bytes, the unpickler can raise anything, such as KeyError and IndexError on text.
    except Exception as error:
        raise MetadataError(
            f"{path} is not a checkpoint that can be read without running its code: it is corrupt, or has more than "
            f"tensors; {_FIX}{_way_out(error)}"
        ) from error


def _way_out(error: Exception) -> str:
    """Return how two libraries save weights that can be read; empty if the file is of neither."""
    text = str(error)
    if "pathlib" in text or "Namespace" in text or "omegaconf" in text:
        return "; Lightning: leave paths and configurations out of save_hyperparameters()"
    if "fastai" in text or "fastcore" in text:
        return "; fastai: learn.save(FILE, with_opt=False)"
    return ""


def _weights(path: Path, held: object) -> tuple[dict[str, Any], str]:
    """Return the weights within a saved training state, and a note on which they are."""
    note = ""
    while isinstance(held, Mapping):
        holding = [key for key, value in held.items() if _holds_tensors(value)]
        # A program may keep the settings of its average under "ema".
        found = [key for key in _NESTED if isinstance(held.get(key), Mapping) and (key != "ema" or key in holding)]
        if not found and len(holding) > 1:
            raise MetadataError(f"{path} has several state dicts: {_some(map(repr, holding))}; save one of them")
        # Under a name that no program is known to use, such as "net".
        if not found and (not holding or any(map(_is_tensor, held.values()))):
            break
        chosen = (found or holding)[0]
        others = [key for key in holding if key != chosen]
        if others:
            kind = "averaged weights (EMA)" if "ema" in chosen else "weights"
            note = f"used the {kind} under {chosen!r}, not those under {_some(map(repr, others))}"
        held = held[chosen]
    if not isinstance(held, Mapping) or not held:
        raise MetadataError(f"{path} has no state dict; save model.state_dict(): tensors by name")
    odd = [key for key, value in held.items() if not isinstance(key, str) or not _is_tensor(value)]
    if odd:
        raise MetadataError(
            f"{path} has no state dict: expected only tensors, got {_some(map(repr, odd))}; save model.state_dict()"
        )
    return dict(held), note


def _clean(path: Path, tensors: dict[str, Tensor], note: str, size: int) -> StateDict:
    """Return the tensors under the unwrapped model's names, after validating them."""
    if not tensors:
        raise MetadataError(f"{path} has no state dict: it has no tensor; save model.state_dict()")
    tensors = {name: value for name, value in tensors.items() if name.rpartition(".")[2] != _COUNTER}
    prefix = common_prefix(tensors)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    _check_plain(path, tensors, size)
    check_finite(path, tensors)
    return StateDict(tensors, note, prefix)


def common_prefix(names: Iterable[str]) -> str:
    """Return the prefix that DataParallel, torch.compile, Lightning and others have put before all names."""
    rest, prefix = list(names), ""
    while found := next((one for one in PREFIXES if all(name.startswith(one) for name in rest)), ""):
        rest, prefix = [name.removeprefix(found) for name in rest], prefix + found
    return prefix


def _check_plain(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Check that every tensor has dense real numbers that are stored in the file."""
    import torch

    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "on the meta device, without values": tensor.is_meta,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "complex": tensor.is_complex(),
        }
        if wrong := [kind for kind, is_so in kinds.items() if is_so]:
            raise MetadataError(f"{path} has a tensor {name!r} that is {wrong[0]}; expected dense real numbers")
        storage = tensor.untyped_storage()
        # A broadcast tensor takes 4 bytes in the file, and all memory when it is copied.
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise MetadataError(f"{path} has a tensor {name!r} with more values than the file has; {_FIX}")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise MetadataError(f"{path} is not a checkpoint: its tensors are larger than the file; it may be corrupt")


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(map(_is_tensor, value.values()))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a tensor is named twice")
    return found


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else "")
