"""Reading of files with untrusted names: regular files only, up to a limit of bytes.

A device, a pipe or a socket could be endless, or block the reader forever.
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
# Keys and certificates: a system's full list of authorities has a quarter of this.
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
        OSError: it is missing or not a regular file; `strerror` names its kind.
    """
    return _check_status(os.stat(path), path)  # noqa: PTH116 - called for every image


def open_regular(path: str | Path) -> BinaryIO:
    """Open the regular file `path` for reading in binary.

    Raises:
        OSError: it can't be opened, or is not a regular file.
    """
    return os.fdopen(_open(path)[0], "rb")


def read_regular(path: str | Path, most_bytes: int = _MAX_BYTES) -> bytes:
    """Return the content of the regular file `path`.

    Args:
        path: The file.
        most_bytes: Largest accepted size; a larger file is refused before it is read.

    Raises:
        OSError: it can't be read, is not a regular file, or is larger than `most_bytes`.
    """
    handle, size = _open(path)
    try:
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most_bytes:,} are read", str(path))
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        # A short read, or a file in /proc, which reports no size.
        blocks, total = [data], len(data)
        while block := os.read(handle, _BLOCK_BYTES):
            blocks.append(block)
            total += len(block)
            if total > most_bytes:
                raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
        return b"".join(blocks)
    finally:
        os.close(handle)


def _open(path: str | Path) -> tuple[int, int]:
    """Return a descriptor of a regular file, and its size in bytes."""
    # Check before opening, as opening triggers some devices, and after, as the file may have been replaced.
    check_regular(path)
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return handle, _check_status(os.fstat(handle), path).st_size
    except OSError:
        os.close(handle)
        raise


def _check_status(status: os.stat_result, path: str | Path) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return status
