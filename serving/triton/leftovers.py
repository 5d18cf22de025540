"""Remove what a killed `plurum serve` leaves behind: processes, shared memory and temporary folders.

The owner of a temporary folder holds a lock on it. The kernel releases the lock when the owner exits, however it
exits, so a folder whose lock can be acquired is abandoned.

Every user may write to the temporary folder and to shared memory, so names prove nothing. A folder counts only if
this user owns it and it is closed to others. Symbolic links are not followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from plurum.serving.triton.processes import ServerProcesses

__all__ = ["OwnedFolder", "sweep_environments", "sweep_killed_servers", "sweep_shared_memory"]

_log = logging.getLogger(__name__)

_LOCK, _NAME = "lock", re.compile(r"plurum_[0-9a-f]{12}_")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (fixed by Linux)
# Triton's Python backend creates a folder here at its start, whatever TMPDIR says; a killed Triton leaves it behind.
_ENVIRONMENTS = Path("/tmp")  # noqa: S108 (only empty folders of this user are removed)


class OwnedFolder:
    """A new temporary folder, closed to other users; the next server removes it if this process is killed.

    Args:
        name: Name of the server: `plurum_`, 12 hexadecimal digits and `_`. The folder's name starts with it.

    Attributes:
        path: Path of the folder.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=name))
        unlocked = self.path / f".{_LOCK}"
        lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # systemd-tmpfiles removes files that were not read for days, except from a folder that is itself locked.
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held = [lock, folder]
        for one in self._held:
            fcntl.flock(one, fcntl.LOCK_EX)
        # The rename makes the lock visible only after it is held.
        unlocked.rename(self.path / _LOCK)

    def record(self, session: int) -> None:
        """Record the session that the server's Triton leads, so that a later server can end its processes."""
        os.pwrite(self._held[0], str(session).encode(), 0)

    def remove(self) -> None:
        """Remove the folder with its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        while self._held:
            os.close(self._held.pop())


def sweep_shared_memory(name: str) -> None:
    """Remove this user's shared memory of the server `name`, whose processes have exited."""
    for path in SHARED_MEMORY.glob(f"{name}*"):
        # Files of that name may belong to other users; leave those alone.
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid():
                path.unlink()


def sweep_environments(since_s: float, until_s: float) -> None:
    """Remove the folder for Python environments that this user's Triton created at its start and did not remove.

    Plurum's models bring no Python environment, so the folder is empty. Only its creation time links it to a server;
    therefore only empty folders are removed.

    Args:
        since_s: Time at which Triton was launched, seconds since the epoch.
        until_s: Time at which Triton was ready or exited, seconds since the epoch.
    """
    for path in _ENVIRONMENTS.glob("python_env_??????"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if about.st_uid == os.geteuid() and since_s <= about.st_ctime <= until_s:
                path.rmdir()


def sweep_killed_servers() -> None:
    """Remove processes, shared memory, folders and logs of this user's servers whose owners were killed."""
    for folder in Path(tempfile.gettempdir()).glob("plurum_*"):
        if (name := _NAME.match(folder.name)) is not None:
            # A folder may disappear meanwhile, be in use, or belong to another user.
            with contextlib.suppress(OSError):
                _sweep(folder, name[0])


def _sweep(folder: Path, name: str) -> None:
    """Remove the server `name` if this user owns `folder` and its lock can be acquired.

    Raises:
        OSError: the folder can't be opened, or its lock is held.
    """
    with contextlib.ExitStack() as held:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        held.callback(os.close, directory)
        about = os.fstat(directory)
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            return
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _log.warning("removing the remains of a server that was killed: %s", folder)
        session = os.pread(lock, 20, 0).decode(errors="replace")
        if session.isdecimal():
            ServerProcesses(name, int(session)).end()
        sweep_shared_memory(name)
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{name}triton.log").unlink(missing_ok=True)
