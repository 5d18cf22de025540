"""Read files whose names come from strangers: regular files only, and never more bytes than a limit.

A device, a pipe or a socket could be read without end, or block the reader for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["MAX_IMAGE_BYTES", "MAX_SECRET_BYTES", "check_regular", "open_regular", "read_regular"]

# 64 megapixels of 16-bit RGBA take 512 MB without compression; the rest is for metadata.
MAX_IMAGE_BYTES = 1 << 29
# Keys and certificates: a system's whole list of authorities has a quarter of this.
MAX_SECRET_BYTES = 1 << 20
_MAX_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | Path) -> os.stat_result:
    """Return the status of the regular file `path`, following links.

    Raises:
        OSError: it is missing, or something else than a regular file; `strerror` names what it is.
    """
    return _checked(os.stat(path), path)  # noqa: PTH116 - called for every image


def open_regular(path: str | Path) -> BinaryIO:
    """Open the regular file `path` for reading in binary.

    Raises:
        OSError: it can't be opened, or is something else than a regular file.
    """
    return os.fdopen(_opened(path)[0], "rb")


def read_regular(path: str | Path, most_bytes: int = _MAX_BYTES) -> bytes:
    """Return what the regular file `path` holds.

    Args:
        path: The file.
        most_bytes: A larger file is refused before it is read.

    Raises:
        OSError: it can't be read, is something else than a regular file, or larger than `most_bytes`.
    """
    handle, size = _opened(path)
    try:
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most_bytes:,} are read", str(path))
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        # A short read, or a file of /proc, whose size is not known before.
        blocks, total = [data], len(data)
        while block := os.read(handle, _BLOCK_BYTES):
            blocks.append(block)
            total += len(block)
            if total > most_bytes:
                raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
        return b"".join(blocks)
    finally:
        os.close(handle)


def _opened(path: str | Path) -> tuple[int, int]:
    """Return a descriptor of a regular file, and the file's size in bytes."""
    # Before it is opened, as opening alone makes some devices act; and after, as it may have been replaced meanwhile.
    check_regular(path)
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return handle, _checked(os.fstat(handle), path).st_size
    except OSError:
        os.close(handle)
        raise


def _checked(status: os.stat_result, path: str | Path) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return status
