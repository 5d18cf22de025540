"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
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
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends well and is removed when it doesn't.

    Args:
        path: A file that is already there keeps its permissions; a new one gets what the user's umask leaves.
        private: Keep a new file to its owner (0600) from its first moment, whatever the umask.

    Raises:
        OutputError: the folder can't be made or written to, `path` is a folder, or the disk is full.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        former, hidden = _mode_of(path), _beside(path)
        mode = 0o666 if former is None and not private else 0o600
        os.close(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_reason(error)}") from error
    try:
        yield hidden
        if former is not None:
            hidden.chmod(former)
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        hidden.replace(path)
    except BrokenPipeError:
        # Not of this file: whoever reads what the block prints has gone.
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_reason(error)}") from error
    finally:
        hidden.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; `private` as in `whole_file`."""
    with whole_file(path, private=private) as hidden:
        hidden.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `path` in one step when the block ends well.

    Until then whatever was at `path` stays as it was; what it held is removed afterwards.

    Args:
        path: A folder that is already there hands on its permissions; a new one gets what the user's umask leaves.
        private: Keep a new folder to its owner (0700) from its first moment, whatever the umask.

    Raises:
        OutputError: the folder can't be made or written to, `path` is a mount point, or the disk is full.
    """
    if path.is_mount():
        # Said before the work, not after it: the kernel swaps no mount points.
        raise OutputError(f"{path} is a mount point, which can't be replaced in one step; name a new folder inside it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        former, hidden = _mode_of(path), _beside(path)
        hidden.mkdir(0o777 if former is None and not private else 0o700)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_reason(error)}") from error
    try:
        yield hidden
        if former is not None:
            hidden.chmod(former)
            _exchange(hidden, path)
        else:
            hidden.rename(path)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Return a hidden name in the same folder that nobody has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of what is at `path`, or None where nothing is."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _reason(error: OSError) -> str:
    """Return what the system said; of the many failures of a copied folder, the first."""
    if isinstance(error, shutil.Error) and isinstance(failures := error.args[0], list):
        return str(failures[0][-1])
    return error.strerror or str(error)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step (renameat2(2)), so that no reader ever finds neither.

    A file system without that step (NFS, some FUSE ones) takes three; for a moment a reader then finds neither.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        raise OSError(number, os.strerror(number))
    aside = _beside(other)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
