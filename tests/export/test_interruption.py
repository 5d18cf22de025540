"""An export that is interrupted, whenever, leaves the repository that was there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.export import ExportSettings, repository_from_run, selection
from plurum.export.doctor import check_repository
from plurum.run import Run

SETTINGS = ExportSettings(max_batch_size=4, fused=True)
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from plurum.export import ExportSettings, repository_from_run, selection
from plurum.run import Run
run, out, graphs, step = sys.argv[1:]
selection.onnx_from_model = lambda _, path: shutil.copyfile(Path(graphs, path.name.split(".")[0], "1/model.onnx"), path)
told = []
def progress(line):
    told.append(line)
    if len(told) == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
repository_from_run(Run(Path(run)), Path(out), ExportSettings(max_batch_size=4, fused=True), progress)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def published(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that is to be replaced."""

    def copied(_: object, path: Path) -> None:
        shutil.copyfile(repository / path.name.removesuffix(".fp32.onnx") / "1" / "model.onnx", path)

    monkeypatch.setattr(selection, "onnx_from_model", copied)
    return shutil.copytree(repository, tmp_path / "model_repository")


def interrupting(step: int, told: list[str]) -> Callable[[str], None]:
    def progress(line: str) -> None:
        told.append(line)
        if len(told) == step:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_at_any_step(run: Run, published: Path) -> None:
    before = files_of(published)
    told: list[str] = []
    repository_from_run(run, published.with_name("whole"), SETTINGS, told.append)
    assert len(told) > 5
    for step in range(1, len(told) + 1):
        with pytest.raises(KeyboardInterrupt):
            repository_from_run(run, published, SETTINGS, interrupting(step, []))
        assert files_of(published) == before
        assert sorted(path.name for path in published.parent.iterdir()) == ["model_repository", "whole"]
    assert [one for one in check_repository(published) if one.state == "error"] == []


def test_a_process_that_is_killed(run: Run, repository: Path, published: Path) -> None:
    before = files_of(published)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(run.path), str(published), str(repository), "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -9, ended.stderr
    assert files_of(published) == before
    exported = repository_from_run(run, published, SETTINGS)
    assert not exported.unchanged
    assert (published / "ensemble_fused" / "config.pbtxt").is_file()
