"""Features of images, computed once per backbone and kept in the user's cache: `~/.cache/plurum/features/KEY.npy`.

A file is float32 `[versions, features]`: one row for each version of an image. It is written batch by batch, so that an
interrupted computation resumes. The least recently used files are removed when all together exceed a limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from plurum.errors import OutputError
from plurum.files import cache_folder, is_locked, lock_file

__all__ = ["compute_features"]

Features = npt.NDArray[np.float32]
_LIMIT_BYTES = 8 << 30
_WAIT_S = 0.2


def compute_features(
    key: str,
    width: int,
    sizes: list[int],
    compute: Callable[[int], Features],
    progress: Callable[[int], None] = lambda _: None,
) -> Features:
    """Return cached features, float32 `[versions, features]`, as a read-only memory map; compute what is missing.

    Args:
        key: SHA-256 of everything that the features depend on, in hexadecimal.
        width: Number of features.
        sizes: Number of rows of each batch.
        compute: Returns the rows of a batch, by its number.
        progress: Called with the number of finished rows.

    Raises:
        OutputError: the cache can't be written, for example on a full disk.
    """
    folder = cache_folder() / "features"
    file, shape = folder / f"{key}.npy", (sum(sizes), width)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / f"{key}.part") as part:
            if _open(file, shape) is None:
                with part.open("r+b") as rows:
                    _write(rows, shape, sizes, compute, progress)
                part.replace(file)
        os.utime(file)
        _remove_oldest(folder, file)
    except OSError as error:
        raise OutputError(
            f"{file}: features can't be cached: {error.strerror or error}. Free some space, or set XDG_CACHE_HOME to "
            f"another folder"
        ) from error
    features = _open(file, shape)
    if features is None:
        raise OutputError(f"{file}: features were removed by another program. Run the same command again to resume")
    progress(len(features))
    return features


@contextmanager
def _locked(part: Path) -> Iterator[Path]:
    """Lock the file `part`, and wait for other processes that compute the same features."""
    while (lock := lock_file(part)) is None:
        time.sleep(_WAIT_S)
    try:
        yield part
        # An empty file only served as the lock.
        if part.is_file() and part.stat().st_size == 0:
            part.unlink()
    finally:
        os.close(lock)


def _open(file: Path, shape: tuple[int, int]) -> Features | None:
    """Return the features in `file`; None if it is missing or not of this shape."""
    try:
        found: Features = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _write(
    file: BinaryIO,
    shape: tuple[int, int],
    sizes: list[int],
    compute: Callable[[int], Features],
    progress: Callable[[int], None],
) -> None:
    """Append the batches that an unfinished file lacks."""
    file.seek(0, os.SEEK_END)
    held = file.tell()
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    end = file.tell()
    done = 0
    for number, size in enumerate(sizes):
        end += size * shape[1] * 4
        # A batch that was written in part is computed again.
        if held < end:
            file.seek(end - size * shape[1] * 4)
            file.truncate()
            file.write(np.ascontiguousarray(compute(number), dtype="<f4").tobytes())
            file.flush()
            held = end
        done += size
        progress(done)
    os.fsync(file.fileno())


def _remove_oldest(folder: Path, kept: Path) -> None:
    """Remove the least recently used files, except `kept`, until all are within the limit."""
    files = {file: file.stat() for file in folder.iterdir() if file.is_file() and file != kept}
    total = kept.stat().st_size + sum(stat.st_size for stat in files.values())
    for file in sorted(files, key=lambda file: files[file].st_mtime):
        if total <= _LIMIT_BYTES:
            break
        # Another process is writing it.
        if is_locked(file):
            continue
        with suppress(OSError):
            file.unlink()
        total -= files[file].st_size
