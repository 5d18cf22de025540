"""A temporary folder for graphs on their way, and the words for a disk that is full there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plurum.errors import OutputError, PlurumError

__all__ = ["scratch_folder"]

# Where so little is free after a fault, graphs that were cut off are the likely cause: not all tools say so.
_LITTLE_BYTES = 1 << 28


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder, which is removed at the end.

    Args:
        out: The folder that is written to besides; a full disk there is not this function's.

    Raises:
        OutputError: the block ended with a fault of no other name, and hardly anything is free below TMPDIR.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except PlurumError:
            raise
        except Exception as error:
            free, free_out = shutil.disk_usage(folder).free, shutil.disk_usage(out).free
            if free >= _LITTLE_BYTES or (isinstance(error, OSError) and free >= free_out):
                raise
            raise OutputError(
                f"TMPDIR: expected room for graphs on their way, got {free >> 20} MiB free at {tempfile.gettempdir()} "
                f"({error!r:.100}). Free some space there, or set TMPDIR to another folder."
            ) from error
