"""Finding Triton, and laying out what the one from the wheel needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.errors import ServerError
from plurum.serving import find_triton
from plurum.serving.triton.installation import TritonInstallation, lay_out


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TritonInstallation:
    """The server from the wheel, also where another is on PATH."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(empty))
        return find_triton()


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_path_comes_first_and_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = executable(tmp_path / "tritonserver", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_triton() == TritonInstallation(binary)
    layout = lay_out(find_triton(), tmp_path / "folder")
    assert layout.arguments == ()
    assert layout.environment == dict(os.environ)


def test_finding_imports_no_pytriton(embedded: TritonInstallation) -> None:
    assert embedded.wheel is not None
    assert embedded.binary.is_file()
    assert "pytriton" not in sys.modules


def test_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"tritonserver is not on PATH, .* pip install 'plurum\[serving\]'"):
        find_triton()


def test_the_stub_runs_in_what_was_laid_out(
    embedded: TritonInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    folder = tmp_path / "folder"
    folder.mkdir()
    layout = lay_out(embedded, folder)
    assert layout.arguments == (f"--backend-directory={folder / 'backends'}",)
    assert (folder / "backends" / "onnxruntime" / "model.py").is_file()
    assert not (folder / "backends" / "python" / "libtriton_python.so").is_symlink()
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    outcome = subprocess.run([stub], env=layout.environment, capture_output=True, text=True, check=False)
    assert "Expected 9 arguments" in outcome.stdout + outcome.stderr
    assert shutil.which("python3", path=layout.environment["PATH"]) == str(Path(sys.executable).parent / "python3")
    assert "PYTHONPATH" not in layout.environment


def wheel_with_stub(folder: Path, script: str) -> TritonInstallation:
    wheel = folder / "tritonserver"
    executable(wheel / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub", script)
    python = wheel / "backends" / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / name).touch()
    return TritonInstallation(executable(wheel / "bin" / "tritonserver", "exit 0"), wheel)


def test_a_stub_that_its_installer_alone_may_run_is_named(tmp_path: Path) -> None:
    triton = wheel_with_stub(tmp_path, "exit 1")
    (stub,) = (tmp_path / "tritonserver" / "python_backend_stubs").glob("*/*")
    stub.chmod(0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ServerError, match=r"expected a program that this user may run\. .*chmod a\+rx "):
        lay_out(triton, tmp_path / "folder")


def test_a_python_without_shared_library(tmp_path: Path) -> None:
    # As the dynamic loader says it.
    message = "stub: error while loading shared libraries: libpython3.so: cannot open shared object file"
    triton = wheel_with_stub(tmp_path, f"echo {message!r} >&2; exit 127")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ServerError, match=r"libpython3\.so: cannot open .* Install its shared library"):
        lay_out(triton, tmp_path / "folder")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda patch: patch.setattr(importlib.metadata, "version", lambda _: "2.1.0"), "got 2.1.0"),
        (lambda patch: patch.setattr(sysconfig, "get_python_version", lambda: "3.99"), "got 3\\.99"),
    ],
)
def test_what_this_triton_does_not_take(
    embedded: TritonInstallation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    (tmp_path / "folder").mkdir()
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises(ServerError, match=message):
            lay_out(embedded, tmp_path / "folder")
