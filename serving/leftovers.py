"""What a Triton server can leave behind: processes of its Python models, their shared memory, a temporary folder.

Who started a server holds a lock in its folder. The kernel lets go of it however he ends, so a lock that can be taken
means a server that nobody looks after any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from plurum.files import is_locked, locked

__all__ = ["claim", "end_processes", "processes_of", "sweep_dead_servers", "sweep_shared_memory"]

_log = logging.getLogger(__name__)

_GONE_S, _POLL_S = 5.0, 0.02
_LOCK, _NAME = "lock", re.compile(r"plurum_[0-9a-f]{12}_")
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


def claim(folder: Path) -> int | None:
    """Take the lock of a server's new temporary folder, and return its file descriptor; closing it lets go."""
    unlocked = folder / f".{_LOCK}"
    lock = locked(unlocked)
    # Seen by others only once it is held.
    unlocked.rename(folder / _LOCK)
    return lock


def sweep_dead_servers() -> None:
    """Clear away this user's servers whose owners were killed: processes, shared memory, folders, logs."""
    temporary = Path(tempfile.gettempdir())
    for path in temporary.glob(f"plurum_*/{_LOCK}"):
        name = _NAME.match(path.parent.name)
        # Folders come and go while we look, and others' are not ours to touch.
        with contextlib.suppress(OSError):
            if name is None or path.stat().st_uid != os.getuid() or is_locked(path):
                continue
            _log.warning("a server was killed here before and is cleared away: %s", path.parent)
            end_processes(name[0])
            sweep_shared_memory(name[0])
            shutil.rmtree(path.parent, ignore_errors=True)
            (temporary / f"{name[0]}triton.log").unlink(missing_ok=True)
