"""What a Triton server can leave behind: processes of its Python models, and their shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

__all__ = ["end_processes", "processes_of", "sweep_shared_memory"]

_GONE_S, _POLL_S = 5.0, 0.02
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps it, whoever writes to it)


def processes_of(name: str) -> list[int]:
    """Return the ids of the processes whose command line holds `name`, the prefix of a server's shared memory."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            # Processes end while we look.
            with contextlib.suppress(OSError):
                if name.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def end_processes(name: str) -> None:
    """Kill what is left of the server `name`, and wait until it is gone.

    Models whose server has died can ignore a request to end. Killed ones are still there for a moment, the longer the
    more memory they hold; one that the kernel can't end in time is left to it.
    """
    deadline = time.monotonic() + _GONE_S
    while (left := processes_of(name)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_S)


def sweep_shared_memory(name: str) -> None:
    """Remove the shared memory of the server `name`, whose processes have ended."""
    for path in SHARED_MEMORY.glob(f"{name}*"):
        path.unlink(missing_ok=True)
