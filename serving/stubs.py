"""The processes in which Triton's Python models and Python-based backends run, one for each instance.

Triton never starts a dead one again, and goes on saying that its model is ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from plurum.serving.leftovers import processes_of

__all__ = ["is_running", "stubs_of"]

_STUB = b"triton_python_backend_stub"


def stubs_of(name: str) -> dict[int, str]:
    """Return the stubs of the server `name`: the model of each, by process id."""
    found = {}
    for process in processes_of(name):
        # Processes end while we look.
        with contextlib.suppress(OSError):
            command, _, rest = (Path("/proc") / str(process) / "cmdline").read_bytes().partition(b"\0")
            # The second word is .../models/MODEL/VERSION/FILE; one that is just starting or ending may have none.
            parts = Path(rest.partition(b"\0")[0].decode()).parts
            if command.endswith(_STUB) and len(parts) >= 3:
                found[process] = parts[-3]
    return found


def is_running(process: int, name: str) -> bool:
    """Whether `process` of the server `name` lives: not ended, no zombie, not another program of the same id.

    One that was stopped (SIGSTOP) holds on to its requests for ever, and is killed here.
    """
    folder = Path("/proc") / str(process)
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        if name.encode() not in (folder / "cmdline").read_bytes():
            return False
        if state == "T":
            os.kill(process, signal.SIGKILL)
    except OSError:
        return False
    return state not in {"T", "X", "Z"}
