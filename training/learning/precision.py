"""Device and numeric precision of a training."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from plurum.errors import SettingsError
from plurum.spec import ImageSpec

if TYPE_CHECKING:
    import torch

__all__ = ["Precision", "autocast", "precision_for", "training_device"]

Precision = Literal["fp32", "bf16", "fp16"]

_BF16_PIXELS = 64 * 64


def training_device() -> torch.device:
    """Return the device to train on: the current CUDA device, or the CPU if there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_for(
    setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device, image: ImageSpec | None = None
) -> Precision:
    """Return the precision to train in on `device`.

    `auto` depends on the device: fp16 on CUDA, bf16 on CPUs that compute in it (AVX-512 BF16 or AMX), else fp32. bf16
    halves the memory traffic of large layers. On small images a CPU gains little, as `benchmarks/claims/training.py`
    measures, and small depthwise layers can become slower.

    Raises:
        SettingsError: fp16 was requested without a CUDA device.
    """
    if setting == "fp16" and device.type != "cuda":
        raise SettingsError(f"--precision: fp16 needs a CUDA device, got {device.type}. Choose auto, bf16 or fp32")
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "fp16"
    is_small = image is not None and image.height * image.width < _BF16_PIXELS
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() and not is_small else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which forward passes compute in `precision`."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _cpu_has_bf16() -> bool:
    import torch

    # PyTorch supports bf16 on any CPU; it is fast only on CPUs with these instructions.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)
