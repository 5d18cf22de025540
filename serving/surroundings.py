"""Whether Triton can work where it is started: the path of its folder, what may run there, and shared memory.

Where it can't, Triton 2.51 does not say so: it waits for processes that never started until its time is up.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plurum.errors import RepositoryError, ServerError
from plurum.serving.launcher import MACHINES

__all__ = ["check_folder", "check_machine", "check_names", "check_shared_memory", "name_failures"]

# Triton starts Python models by a line for bash, without quotes, and their Python reads paths as ASCII. A colon would
# divide LD_LIBRARY_PATH.
_PLAIN = re.compile(r"[A-Za-z0-9_./@%+=,~^-]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.@%+=,~^-]+")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps it)
_INSTANCE_BYTES = 1 << 20


def check_folder(folder: Path, *, runs_code: bool) -> None:
    """Make sure that Triton can be started in `folder`, which is below the temporary folder.

    Args:
        folder: There already.
        runs_code: Whether libraries are loaded from it.

    Raises:
        ServerError: its path has characters that Triton can't take, or nothing may be executed there.
    """
    place = tempfile.gettempdir()
    if not _PLAIN.fullmatch(str(folder)):
        raise ServerError(
            f"TMPDIR: expected a path of ASCII letters, digits and _./@%+=,~^-, got {place!a}, with which Triton can't "
            "start a Python model. Set TMPDIR to another folder."
        )
    if runs_code and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ServerError(
            f"TMPDIR: expected a file system that programs may run from, got {place}, which is mounted noexec. "
            "Set TMPDIR to another folder."
        )


def check_machine() -> None:
    """Make sure that the launcher can keep Triton's shared memory from other users on this kind of machine.

    Raises:
        ServerError: it can't.
    """
    if platform.machine() not in MACHINES:
        raise ServerError(
            f"machine: expected {' or '.join(MACHINES)}, got {platform.machine() or 'an unknown one'}, where Triton's "
            "shared memory, which holds images and predictions, can't be closed to other users. Serve elsewhere."
        )


def check_names(repository: Path, models: list[str]) -> None:
    """Make sure that Triton can start models of these names.

    Raises:
        RepositoryError: a name has characters that Triton can't take.
    """
    for model in models:
        if not _PLAIN_NAME.fullmatch(model):
            raise RepositoryError(
                f"{repository}: expected model names of ASCII letters, digits and _.-, got {model!a}. Rename the model."
            )


def check_shared_memory(instances: int) -> None:
    """Make sure that there is shared memory for so many instances of Python models.

    Raises:
        ServerError: there is not, or it can't be written to.
    """
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError as error:
        raise ServerError(f"{_SHARED_MEMORY}: expected a folder for shared memory, got: {error.strerror}") from error
    if status.f_flag & os.ST_RDONLY or not os.access(_SHARED_MEMORY, os.W_OK):
        raise ServerError(f"{_SHARED_MEMORY}: expected a folder that can be written to. Mount it writable.")
    free, needed = status.f_bavail * status.f_frsize, instances * _INSTANCE_BYTES
    # A file system of size 0 has no limit of its own.
    if status.f_blocks and free < needed:
        raise ServerError(
            f"{_SHARED_MEMORY}: expected at least {needed >> 20} MiB free, one for each instance of a model, got "
            f"{free / (1 << 20):.1f} MiB. Remove what fills it, or give the container more (docker run --shm-size)."
        )


@contextmanager
def name_failures() -> Iterator[None]:
    """Raise what the system refuses in the block, a full disk mostly, as a `ServerError` that names the place."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or f"the temporary folder {tempfile.gettempdir()}"
        raise ServerError(f"{place} can't be used: {error.strerror or error}") from error
