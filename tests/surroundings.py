"""Full, read-only and noexec file systems, mounted for a single process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["NEEDS_MOUNTS", "namespace"]

_UNSHARE = ("unshare", "--mount", "--propagation", "private", *(() if os.geteuid() == 0 else ("--map-root-user",)))


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


NEEDS_MOUNTS = pytest.mark.skipif(not _can_mount(), reason="unshare may not mount a file system here")


def namespace(mounts: dict[Path, str], command: Sequence[object]) -> list[str]:
    """Return `command` wrapped so that it sees these in-memory file systems, which exist only for it.

    Args:
        mounts: Options of mount(8) by folder; `ro` is a folder that was filled and can't be written to any more.
        command: Program and arguments.
    """
    lines = [f'mount -t tmpfs -o "{options}" none "${number}"' for number, options in enumerate(mounts.values(), 1)]
    script = " && ".join([*lines, f"shift {len(mounts)}", 'exec "$@"'])
    return [*_UNSHARE, "sh", "-c", script, "sh", *map(str, mounts), *map(str, command)]
