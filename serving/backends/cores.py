"""Cores that the instances of a server's graphs share: an instance that computes alone may use all of them.

Every instance is a process of its own. While it computes, it holds a lock on its own byte of a file that all instances
have open. The byte's position is its process id. The kernel releases the lock of a process that exits.

The file runs inside Triton's stub process without Plurum.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# `struct flock` of Linux on 64-bit machines: type, whence, start, length (0: to the end), process.
_FLOCK = "hhqqi"


class SharedCores:
    """The cores of one server.

    Args:
        file: File that all instances share; created if missing. None shares nothing, so no instance is ever alone.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Hold the lock of this instance; yield True if no other instance computes now."""
        if self._file is None:
            yield False
            return
        place = os.getpid()
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, place)
        try:
            yield _is_alone(self._file)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


def _is_alone(file: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    # Locks of this process itself are never in its way.
    found = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return bool(found[0] == fcntl.F_UNLCK)
