"""The processes of one server: Triton, and everything that Triton has started.

A command line proves nothing, as every user may write any words into one. What counts is what the kernel keeps: the
session that Triton leads, which no other user's process can enter, and the user. The server's name in the environment
tells its processes from those of a later session with the same number.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["MARK", "ServerProcesses", "is_alive"]

# The environment variable that holds a server's name; everything that Triton starts inherits it.
MARK = "PLURUM_SERVER"
_STUB = "triton_python_backend_stub"
_GONE_S, _POLL_S = 5.0, 0.02


@dataclass(frozen=True)
class ServerProcesses:
    """The processes of a server, found anew at each call.

    Attributes:
        name: The server's, which its processes have in their environment under `MARK`.
        session: The session that Triton leads: its process id.
    """

    name: str
    session: int

    @classmethod
    def started_by(cls, owner: int) -> ServerProcesses | None:
        """Return those of the server that the process `owner` has started, or None where it has started none."""
        for child in psutil.Process(owner).children():
            # It may end while we look, and has no environment until it has become the launcher.
            with contextlib.suppress(psutil.Error):
                if (name := child.environ().get(MARK)) is not None:
                    return cls(name, child.pid)
        return None

    def find(self) -> list[psutil.Process]:
        """Return those that live, Triton's own included."""
        found = []
        for pid in psutil.pids():
            # Processes end while we look.
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(pid) == self.session and self._is_ours(process := psutil.Process(pid)):
                    found.append(process)
        return found

    def stubs(self) -> dict[psutil.Process, str]:
        """Return the processes in which Python models and Python-based backends run: the model of each.

        There is one for each instance. Triton never starts a dead one again, and goes on saying that its model is
        ready.
        """
        found = {}
        for process in self.find():
            with contextlib.suppress(psutil.Error):
                # The second word is .../models/MODEL/VERSION/FILE; one that is just starting or ending may have none.
                command, file, *_ = [*process.cmdline(), "", ""]
                parts = Path(file).parts
                if command.endswith(_STUB) and len(parts) >= 3:
                    found[process] = parts[-3]
        return found

    def end(self) -> None:
        """Kill those that are left, and wait until they are gone.

        Models whose server has died can ignore a request to end. Killed processes stay for a moment, the longer the
        more memory they hold; one that the kernel can't end in time is left to it.
        """
        deadline = time.monotonic() + _GONE_S
        while (left := self.find()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(_POLL_S)

    def _is_ours(self, process: psutil.Process) -> bool:
        users = process.uids()
        same = (users.real, users.effective) == (os.getuid(), os.geteuid())
        return same and process.environ().get(MARK) == self.name


def is_alive(process: psutil.Process) -> bool:
    """Whether `process` lives: not ended, no zombie, not another program of the same id.

    One that was stopped (SIGSTOP) holds on to its requests for ever, and is killed here.
    """
    try:
        if not process.is_running():
            return False
        state = process.status()
        if state == psutil.STATUS_STOPPED:
            process.kill()
    except psutil.Error:
        return False
    return state not in {psutil.STATUS_STOPPED, psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE}
