"""Cores that the instances of a server's graphs share: an instance that computes alone may use all of them.

Every instance is a process of its own. While it computes, it holds a lock on its own byte of a file that all instances
have open. The byte's position is its process id. The kernel releases the lock of a process that exits.

The file holds the last time when two instances computed at once. For a while after it, no instance is alone. Under
load another one soon computes again, and the additional threads keep its core busy while they wait for more work.

The file runs inside Triton's stub process without Plurum.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# `struct flock` of Linux on 64-bit machines: type, whence, start, length (0: to the end), process.
_FLOCK = "hhqqi"
# Time of the clock that all processes share, ns.
_TIME = struct.Struct("<q")
_QUIET_S = 0.1


class SharedCores:
    """The cores of one server.

    Args:
        file: File that all instances share; created if missing. None shares nothing, so no instance is ever alone.
        quiet_s: Time after two instances computed at once in which none is alone, seconds.
    """

    def __init__(self, file: Path | None, quiet_s: float = _QUIET_S) -> None:
        self._file = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._quiet_ns = round(quiet_s * 1e9)
        if self._file is not None:
            os.ftruncate(self._file, _TIME.size)
            self._busy = mmap.mmap(self._file, _TIME.size)

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Hold the lock of this instance; yield True if no other instance computes now, nor did at once lately."""
        if self._file is None:
            yield False
            return
        place = os.getpid()
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, place)
        try:
            yield self._is_alone(self._file)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._busy.close()
            os.close(self._file)

    def _is_alone(self, file: int) -> bool:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        # Locks of this process itself are never in its way.
        found = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        now_ns = time.monotonic_ns()
        if found[0] != fcntl.F_UNLCK:
            _TIME.pack_into(self._busy, 0, now_ns)
            return False
        (busy_ns,) = _TIME.unpack_from(self._busy)
        # The file may be older than the machine's start.
        return not 0 <= now_ns - busy_ns < self._quiet_ns
