"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from plurum.serving import find_triton, usable_cores

__all__ = ["machine", "processor_s", "versions"]

_PACKAGES = ("plurum", "numpy", "onnxruntime", "tritonclient", "timm", "torch")


def machine() -> dict[str, str | int | float]:
    """Return the processor, the cores we may use, the memory in GB and the load of the last minute."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that matter and of where Triton comes from."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    wheel = find_triton().wheel
    found["triton"] = (
        "from PATH" if wheel is None else f"nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}"
    )
    return found


def processor_s(process: int) -> float:
    """Return for how long processors have been busy with a process so far, seconds.

    Raises:
        OSError: it has ended.
    """
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    # utime and stime, proc(5).
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
