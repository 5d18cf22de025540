"""The machine and the package versions of a measurement, and what processes take of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import psutil

from plurum.serving import find_triton, usable_cores
from plurum.serving.installation import PACKAGES

__all__ = ["Machine", "machine", "memory_bytes", "peak_bytes", "processor_s", "versions"]

_PACKAGES = ("plurum", "numpy", "onnxruntime", "tritonclient", "timm", "torch")


# The machine of a measurement, as results state it.
Machine = dict[str, str | int | float]


def machine() -> Machine:
    """Return the processor, the number of usable cores, the memory in GB and the load average of the last minute."""
    named = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "processor": named[1].strip() if named else platform.machine(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on, and the source of Triton."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    found["triton"] = "from PATH" if find_triton().wheel is None else f"nvidia-pytriton {PACKAGES['nvidia-pytriton']}"
    return found


def processor_s(process: int) -> float:
    """Return the processor time that a process has used so far, seconds.

    Raises:
        psutil.NoSuchProcess: The process has exited.
    """
    used = psutil.Process(process).cpu_times()
    return used.user + used.system


def memory_bytes(roles: Mapping[int, str]) -> dict[str, int]:
    """Return the proportional set size (PSS) of processes, bytes, summed by role.

    Args:
        roles: Role of each process, by its id.

    Raises:
        OSError: One of the processes has exited.
    """
    held: dict[str, int] = {}
    for process, role in roles.items():
        (kib,) = re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
        held[role] = held.get(role, 0) + 1024 * int(kib)
    return held


def peak_bytes(process: int | str) -> int:
    """Return the highest resident memory of a process so far, bytes; `self` is this process.

    Unlike getrusage it does not include the memory that a parent held.
    """
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))[0])
