"""An interrupted export leaves the existing repository unchanged."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from plurum.export import ExportSettings, repository_from_run
from plurum.export.doctor import check_repository
from plurum.run import Run
from plurum.serving import Server, ServerSettings

# Ten exports in a row, on machines that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ExportSettings(max_batch_size=4, fused=True)
# Import once, then fork and kill one process per step.
KILLED = """
import hashlib, os, shutil, signal, sys
from pathlib import Path
from plurum.export import ExportSettings, repository_from_run
from plurum.export.repository import selection
from plurum.run import Run
from plurum.serving import Server, ServerSettings
run, out, graphs, *steps = sys.argv[1:]
selection.onnx_from_model = lambda _, path: shutil.copyfile(Path(graphs, path.name.split(".")[0], "1/model.onnx"), path)
for step in map(int, steps):
    if child := os.fork():
        print(step, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    told = []
    def progress(line):
        told.append(line)
        if len(told) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    repository_from_run(Run(Path(run)), Path(out), ExportSettings(max_batch_size=4, fused=True), progress)
    os._exit(0)
"""


def kill(run: Run, repository: Path, published: Path, *steps: int) -> None:
    """Export to `published` and kill the export at each of these steps."""
    words = map(str, (run.path, published, repository, *steps))
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{step} -9" for step in steps], ended.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def published(repository: Path, tmp_path: Path) -> Path:
    """Return a repository that the export replaces."""
    return shutil.copytree(repository, tmp_path / "model_repository")


def interrupting(step: int, told: list[str]) -> Callable[[str], None]:
    def progress(line: str) -> None:
        told.append(line)
        if len(told) == step:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_at_any_step_leaves_no_partial_repository(run: Run, published: Path) -> None:
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


def test_a_kill_at_any_step_leaves_no_partial_repository(run: Run, repository: Path, published: Path) -> None:
    """Files that a killed export leaves do not affect the next one."""
    before = files_of(published)
    kill(run, repository, published, 1, 2, 3, 4, 5, 6)
    assert files_of(published) == before
    exported = repository_from_run(run, published, SETTINGS)
    assert not exported.unchanged
    assert (published / "ensemble_fused" / "config.pbtxt").is_file()
    assert [one for one in check_repository(published) if one.state == "error"] == []


@pytest.mark.triton
def test_a_server_goes_on_answering_while_exports_are_killed(run: Run, repository: Path, published: Path) -> None:
    """The server serves the folder that the exports write to."""
    pixels = np.ascontiguousarray(run.pixels()[40:44])
    tensor = tritonclient.grpc.InferInput("PIXELS", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answers: list[bytes] = []
    over = threading.Event()
    with (
        Server(published, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server,
        tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client,
        ThreadPoolExecutor(1) as pool,
    ):

        def ask() -> None:
            while not over.is_set():
                answers.append(client.infer("ensemble_pixels", [tensor]).as_numpy("PROBABILITIES").tobytes())

        asking = pool.submit(ask)
        try:
            before = files_of(published)
            kill(run, repository, published, 2, 4, 6)
        finally:
            over.set()
        asking.result()
        assert files_of(published) == before
    assert len(answers) > 10
    assert len(set(answers)) == 1
