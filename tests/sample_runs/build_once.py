"""Folders and files that pytest-xdist's processes and the stages of `make test` share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["build_once"]


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return a folder or file that `build` makes in the first process that needs it.

    It is shared by pytest-xdist's processes, and by sessions with the same `PLURUM_SHARED_FIXTURES`, a folder.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("PLURUM_SHARED_FIXTURES", base)) / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                build(folder)
            except BaseException:
                # Nothing takes a part for the whole.
                folder.unlink() if folder.is_file() else shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder
