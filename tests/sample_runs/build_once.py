"""Folders and files that pytest-xdist's processes share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["build_once"]


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return a folder or file that `build` makes in the first of pytest-xdist's processes that needs it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
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
