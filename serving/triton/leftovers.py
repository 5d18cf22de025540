"""What a killed `plurum serve` can leave behind: processes, their shared memory, temporary folders.

Each temporary folder has a lock, which its owner holds. The kernel releases it however the owner ends, so a lock that
can be taken belongs to a folder that nobody looks after any more.

Temporary folders and shared memory lie where every user may write. So nothing there is trusted by its name: a folder
counts if this user owns it and it is closed to others, and no link is followed.
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

__all__ = ["OwnedFolder", "sweep_dead_servers", "sweep_environments", "sweep_shared_memory"]

_log = logging.getLogger(__name__)

_LOCK, _NAME = "lock", re.compile(r"plurum_[0-9a-f]{12}_")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps it, whoever writes to it)
# Where Triton's Python backend makes a folder at its start, whatever TMPDIR says, which a killed Triton leaves.
_ENVIRONMENTS = Path("/tmp")  # noqa: S108 (only empty folders of this user are removed)


class OwnedFolder:
    """A new temporary folder, closed to other users; the next server removes it if this process is killed.

    Args:
        name: The server's: `plurum_`, 12 hexadecimal digits and `_`. Begins the folder's name.

    Attributes:
        path: Where it is.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=name))
        unlocked = self.path / f".{_LOCK}"
        lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # systemd-tmpfiles removes what has not been read for days, except from a folder that is locked itself.
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held = [lock, folder]
        for one in self._held:
            fcntl.flock(one, fcntl.LOCK_EX)
        # Others see the lock once it is held.
        unlocked.rename(self.path / _LOCK)

    def record(self, session: int) -> None:
        """Write down the session that the server's Triton leads, for whoever has to end it."""
        os.pwrite(self._held[0], str(session).encode(), 0)

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        while self._held:
            os.close(self._held.pop())


def sweep_shared_memory(name: str) -> None:
    """Remove this user's shared memory of the server `name`, whose processes have ended."""
    for path in SHARED_MEMORY.glob(f"{name}*"):
        # Other users may have put files of such a name there, which are theirs.
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid():
                path.unlink()


def sweep_environments(since_s: float, until_s: float) -> None:
    """Remove the folder that a Triton of this user made while it started and, when it was killed, left behind.

    It is for Python environments, which our models do not bring. Nothing tells whose it is but when it was made, so
    only empty ones are removed.

    Args:
        since_s: When Triton was launched, seconds since the epoch.
        until_s: When it was ready, or ended.
    """
    for path in _ENVIRONMENTS.glob("python_env_??????"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if about.st_uid == os.geteuid() and since_s <= about.st_ctime <= until_s:
                path.rmdir()


def sweep_dead_servers() -> None:
    """Clear away this user's servers whose owners were killed: processes, shared memory, folders, logs."""
    for folder in Path(tempfile.gettempdir()).glob("plurum_*"):
        if (name := _NAME.match(folder.name)) is not None:
            # Folders come and go while we look, are looked after, or are others'.
            with contextlib.suppress(OSError):
                _sweep(folder, name[0])


def _sweep(folder: Path, name: str) -> None:
    """Clear away the server `name` if `folder` is this user's and its lock can be taken.

    Raises:
        OSError: it is not, or it can't.
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
        _log.warning("a server was killed here before and is cleared away: %s", folder)
        session = os.pread(lock, 20, 0).decode(errors="replace")
        if session.isdecimal():
            ServerProcesses(name, int(session)).end()
        sweep_shared_memory(name)
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{name}triton.log").unlink(missing_ok=True)
