"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plurum.errors import OutputError

__all__ = ["is_locked", "locked", "sha256_of", "whole_file", "whole_folder", "write_text"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file `path` in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def locked(path: Path) -> int | None:
    """Lock the file `path`, which is made where there is none, and return its descriptor; None where it is locked.

    Closing the descriptor lets go of it, and so does the end of this process, however it comes.
    """
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Whether somebody has locked the file `path`; no if there is none."""
    if not path.is_file():
        return False
    lock = locked(path)
    if lock is None:
        return True
    os.close(lock)
    return False


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends well and is removed when it doesn't.

    Raises:
        OutputError: the folder can't be made or written to, `path` is a folder, or the disk is full.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}") from error
    hidden = Path(name)
    try:
        yield hidden
        hidden.chmod(0o666 & ~_umask())
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        hidden.replace(path)
    except BrokenPipeError:
        # Not of this file: whoever reads what the block prints has gone.
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        hidden.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `path` in one step when the block ends well.

    Until then whatever was at `path` stays as it was; what it held is removed afterwards.

    Raises:
        OutputError: the folder can't be made or written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}") from error
    try:
        hidden.chmod(0o777 & ~_umask())
        yield hidden
        if path.exists():
            _exchange(hidden, path)
        else:
            hidden.rename(path)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step (renameat2(2)), so that no reader ever finds neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
