"""Find the processes of one server: Triton, and everything that Triton has started.

A command line proves nothing, because every user can choose one. Processes are therefore identified by what the kernel
guarantees: their user, and the session that Triton leads, which no other user's process can join. The server's name
in the environment distinguishes them from a later session with the same number.
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
    """The processes of a server, looked up at each call.

    Attributes:
        name: Name of the server, which its processes have in their environment under `MARK`.
        session: Session that Triton leads, equal to Triton's process id.
    """

    name: str
    session: int

    @classmethod
    def started_by(cls, owner: int) -> ServerProcesses | None:
        """Return the processes of the server that the process `owner` started, or None if it started none."""
        for child in psutil.Process(owner).children():
            # The child may exit meanwhile, and has no environment until it has become the launcher.
            with contextlib.suppress(psutil.Error):
                if (name := child.environ().get(MARK)) is not None:
                    return cls(name, child.pid)
        return None

    def find(self) -> list[psutil.Process]:
        """Return the running processes, including Triton itself."""
        found = []
        for pid in psutil.pids():
            # Processes may exit meanwhile.
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(pid) == self.session and self._is_ours(process := psutil.Process(pid)):
                    found.append(process)
        return found

    def stubs(self) -> dict[psutil.Process, str]:
        """Return the processes of Python models and Python-based backends, each with its model's name.

        Each instance has one process. Triton never restarts a process that has exited, and still reports its model as
        ready.
        """
        found = {}
        for process in self.find():
            with contextlib.suppress(psutil.Error):
                # The second word is .../models/MODEL/VERSION/FILE; a starting or exiting process may have none.
                command, file, *_ = [*process.cmdline(), "", ""]
                parts = Path(file).parts
                if command.endswith(_STUB) and len(parts) >= 3:
                    found[process] = parts[-3]
        return found

    def end(self) -> None:
        """Kill the remaining processes and wait until they have exited, at most 5 s.

        Models whose server has exited can ignore SIGTERM. A killed process takes longer to exit the more memory it
        holds.
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
    """Return True if `process` runs: it has not exited, is not a zombie, and its id was not reused.

    A stopped process (SIGSTOP) would hold its requests for ever; this function kills it and returns False.
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
