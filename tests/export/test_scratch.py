"""A temporary folder that is full while an export works in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.run import Run
from tests.surroundings import NEEDS_MOUNTS, namespace


@pytest.mark.slow
@NEEDS_MOUNTS
@pytest.mark.parametrize(("size", "precision"), [("1m", "fp32"), ("60m", "int8")])
def test_a_full_temporary_folder_is_named_and_nothing_is_left(
    run: Run, tmp_path: Path, size: str, precision: str
) -> None:
    small, out = tmp_path / "small", tmp_path / "repository"
    small.mkdir()
    words = [sys.executable, "-m", "plurum", "export", run.path, "--precision", precision, "--out", out]
    ended = subprocess.run(
        namespace({small: f"size={size}"}, words),
        env=os.environ | {"TMPDIR": str(small)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("plurum: TMPDIR: expected room for graphs on their way"), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
