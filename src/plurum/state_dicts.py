"""State dicts in files that strangers may have written: read without running code, and checked before they are used."""

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

from plurum.errors import ContractError, needs_extra
from plurum.regular_files import check_regular

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StateDict", "check_finite", "read_state_dict", "tensors_from_safetensors"]

# Under which of these other programs keep the weights, the first that is there; averaged ones (EMA) come first, as
# timm takes them.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "model_state")
# What DataParallel, torch.compile, Lightning and others put before all names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
# How many models torch.optim.swa_utils.AveragedModel has averaged, beside their weights.
_COUNTER = "n_averaged"
_NAMED = 3
# Of the library, too.
_MAX_HEADER = 100_000_000
_RATHER = "save a state dict: torch.save(model.state_dict(), ...) or safetensors"


@dataclass(frozen=True)
class StateDict:
    """What a checkpoint holds of a model.

    Attributes:
        tensors: By name, as the model names them where it is not wrapped; dense, finite, on the CPU.
        note: Which weights were taken where the file holds several; empty where there was no choice.
    """

    tensors: dict[str, Tensor]
    note: str = ""


def read_state_dict(path: Path) -> StateDict:
    """Return the state dict that a file of safetensors or of `torch.save` holds.

    Code in the file is never run. Of averaged weights (EMA) and others, the averaged ones are taken.

    Raises:
        ContractError: it holds none, more than tensors, or tensors that are no plain finite numbers.
        MissingExtraError: torch or safetensors is not installed.
    """
    with needs_extra("training", "torch", "safetensors"):
        pass
    try:
        size = check_regular(path).st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ContractError(f"{path} is no file ({error.strerror}); name a checkpoint, or a run's folder") from error
    if start[8:] == b"{":
        return _cleaned(path, tensors_from_safetensors(path), "", size)
    if not start.startswith((b"PK\3\4", b"\x80")):
        raise ContractError(f"{path} is no checkpoint, neither of safetensors nor of torch.save; {_RATHER}")
    held, note = _weights(path, _unpickled(path))
    return _cleaned(path, held, note, size)


def tensors_from_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ContractError: it is broken, or names a tensor twice.
        OSError: it can't be read.
    """
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, _MAX_HEADER))
        # The library takes the last of tensors with one name.
        json.loads(header, object_pairs_hook=_distinct)
        return dict(load_file(path))
    except OSError:
        raise
    # Whatever the file makes the library stumble over.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ContractError(f"{path} is no checkpoint: its safetensors are broken ({reason})") from error


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Make sure that all values are finite as float32, in which members compute.

    Raises:
        ContractError: some are not; the first tensor is named.
    """
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.to(torch.float32)
        if not torch.isfinite(values).all():
            nan, wrong = int(values.isnan().sum()), int((~torch.isfinite(values)).sum())
            raise ContractError(
                f"{path} has weights that are not finite: {name!r} holds {nan:,} NaN and {wrong - nan:,} infinite "
                f"values, of {values.numel():,}; its training diverged: take a checkpoint from before"
            )


def _unpickled(path: Path) -> object:
    """Return what `torch.save` wrote, if it is tensors and plain values alone."""
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ContractError(f"{path} is no checkpoint: it is a compressed ZIP; {_RATHER}")
        # timm keeps the options of its training as such a namespace; PyTorch warns of TorchScript, which it refuses.
        # Given a path, torch.load goes by its suffix.
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except ContractError:
        raise
    # On the bytes of a stranger, the unpickler stumbles over anything: KeyError and IndexError on text, say.
    except Exception as error:
        raise ContractError(
            f"{path} is no checkpoint that can be read without running code in it: it is damaged, or holds more than "
            f"tensors; {_RATHER}"
        ) from error


def _weights(path: Path, held: object) -> tuple[dict[str, Any], str]:
    """Return the weights among what a training has saved, and a note on which they are."""
    note = ""
    while isinstance(held, Mapping):
        found = [key for key in _NESTED if isinstance(held.get(key), Mapping)]
        if not found:
            break
        chosen = found[0]
        others = [key for key, value in held.items() if key != chosen and _holds_tensors(value)]
        if others:
            kind = "averaged weights (EMA)" if "ema" in chosen else "weights"
            note = f"the {kind} under {chosen!r} were taken, not those under {_some(map(repr, others))}"
        held = held[chosen]
    if not isinstance(held, Mapping) or not held:
        raise ContractError(f"{path} holds no state dict; save model.state_dict(): tensors by their names")
    odd = [key for key, value in held.items() if not isinstance(key, str) or not _is_tensor(value)]
    if odd:
        raise ContractError(
            f"{path} holds no state dict: {_some(map(repr, odd))} {'are' if len(odd) > 1 else 'is'} no tensor; save "
            f"model.state_dict(): tensors by their names"
        )
    return dict(held), note


def _cleaned(path: Path, tensors: dict[str, Tensor], note: str, size: int) -> StateDict:
    """Return the tensors under the model's own names, once they are known to be plain numbers."""
    if not tensors:
        raise ContractError(f"{path} holds no state dict: it has no tensor; save model.state_dict()")
    tensors = {name: value for name, value in tensors.items() if name.rpartition(".")[2] != _COUNTER}
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    _check_plain(path, tensors, size)
    check_finite(path, tensors)
    return StateDict(tensors, note)


def _check_plain(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Make sure that every tensor is dense numbers that lie in the file."""
    import torch

    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "on no device, without values": tensor.is_meta,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "of complex numbers": tensor.is_complex(),
        }
        if wrong := [kind for kind, is_so in kinds.items() if is_so]:
            raise ContractError(f"{path} has a tensor {name!r} that is {wrong[0]}; dense real numbers are needed")
        storage = tensor.untyped_storage()
        # A number repeated a million times over takes a file of 4 bytes, and all memory once it is copied.
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ContractError(f"{path} has a tensor {name!r} with more values than the file holds; {_RATHER}")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise ContractError(f"{path} is no checkpoint: its tensors are larger than the file; is it damaged?")


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
