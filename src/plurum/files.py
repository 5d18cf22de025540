"""Atomic writing of files and folders, CSV text, and file locks."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plurum.errors import OutputError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "check_folder",
    "csv_from_rows",
    "is_locked",
    "lock_file",
    "sha256_of",
    "write_bytes",
    "write_text",
]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def cache_folder() -> Path:
    """Return Plurum's folder in the user's cache, which may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "plurum"


def check_folder(folder: Path, content: str) -> None:
    """Check that `folder`, for `content`, is a folder that can be written to, or can be created.

    Raises:
        OutputError: it is a file, or no folder of this user.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; name a folder for {content}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} can't be written to; name another folder for {content}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file `path` in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def lock_file(path: Path) -> int | None:
    """Lock the file `path`, created if missing, and return its descriptor; None if it is already locked.

    Closing the descriptor releases the lock, as does the exit of the process, however it happens.
    """
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Return True if the file `path` exists and is locked."""
    if not path.is_file():
        return False
    lock = lock_file(path)
    if lock is None:
        return True
    os.close(lock)
    return False


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` if the block succeeds, otherwise remove it.

    Args:
        path: The file. An existing file keeps its permissions; a new one follows the umask.
        private: If True, create a new file with permissions 0600, whatever the umask.

    Raises:
        OutputError: the folder can't be created or written to, `path` is a folder, or the disk is full.
    """
    if path.is_dir():
        raise OutputError(f"expected a file, got the folder {path}")
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        former, hidden = _mode_of(path), _beside(path)
        mode = 0o666 if former is None and not private else 0o600
        os.close(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
    try:
        with _output_errors(path):
            yield hidden
            if former is not None:
                hidden.chmod(former)
            with hidden.open("rb") as file:
                os.fsync(file.fileno())
            hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write `data` to `path` atomically; `private` as in `atomic_file`."""
    with atomic_file(path, private=private) as hidden:
        hidden.write_bytes(data)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write `text` to `path` in UTF-8, atomically; `private` as in `atomic_file`."""
    write_bytes(path, text.encode(), private=private)


def csv_from_rows(rows: Iterable[Iterable[object]]) -> str:
    """Return rows, the header first, as CSV text; lines end as on Unix."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


@contextmanager
def atomic_folder(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; it atomically replaces `path` if the block succeeds.

    Until then the old content of `path` is unchanged; it is removed afterwards.

    Args:
        path: The folder. An existing folder passes on its permissions; a new one follows the umask.
        private: If True, create a new folder with permissions 0700, whatever the umask.

    Raises:
        OutputError: the folder can't be created or written to, `path` is a mount point, or the disk is full.
    """
    if path.is_mount():
        # Refuse before the work is done: the kernel can't exchange mount points.
        raise OutputError(f"{path} is a mount point, which can't be replaced atomically. Name a folder inside it.")
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        former, hidden = _mode_of(path), _beside(path)
        hidden.mkdir(0o777 if former is None and not private else 0o700)
    try:
        with _output_errors(path):
            yield hidden
            if former is not None:
                hidden.chmod(former)
                _exchange(hidden, path)
            else:
                hidden.rename(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into an `OutputError` about `path`."""
    try:
        yield
    except BrokenPipeError:
        # Not about this file: the reader of the block's standard output has gone.
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {_reason(error)}") from error


def _beside(path: Path) -> Path:
    """Return an unused hidden name in the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of `path`, or None if it does not exist."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _reason(error: OSError) -> str:
    """Return the system's reason; for a folder copy, that of the first failure."""
    if isinstance(error, shutil.Error) and isinstance(failures := error.args[0], list):
        return str(failures[0][-1])
    return error.strerror or str(error)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders atomically (renameat2(2)), so that readers always find one of them.

    File systems without it (NFS, some FUSE ones) need three renames, between which readers find neither for a moment.
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
