"""Exports whose members are copies of graphs that exist, because tracing members is slow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plurum.export.repository import selection

__all__ = ["graphs_copied_from"]


@contextmanager
def graphs_copied_from(repository: Path) -> Iterator[None]:
    """Let exports in the block copy the FP32 graphs of a repository in place of tracing the same members."""

    def copied(_: object, path: Path) -> None:
        shutil.copyfile(repository / path.name.removesuffix(".fp32.onnx") / "1" / "model.onnx", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "onnx_from_model", copied)
        yield
