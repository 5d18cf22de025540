"""Number of CPU cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of whole cores that CPU affinity and quotas allow, at least 1.

    Args:
        cgroups: Mount point of the control groups, version 1 or 2.
        own: File that names the control group of this process.
    """
    quotas = [*_quotas_v2(cgroups, own), *_quotas_v1(cgroups)]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def _quotas_v2(cgroups: Path, own: Path) -> list[float]:
    """Return the CPU quotas, in cores, of this process's control group and its parents."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    groups = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]
    quotas = []
    for group in groups:
        folder = cgroups / group
        for level in (folder, *folder.parents):
            if not level.is_relative_to(cgroups):
                break
            quota, _, period = _text(level / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit():
                quotas.append(int(quota) / int(period))
    return quotas


def _quotas_v1(cgroups: Path) -> list[float]:
    quota, period = (_text(cgroups / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    # A quota of -1 means no limit.
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
