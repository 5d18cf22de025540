"""Finding Triton, and preparing what the one from the wheel needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from plurum.errors import ServerError
from plurum.serving import find_triton
from plurum.serving.installation import Interpreter, TritonInstallation, lay_out, triton
from plurum.serving.installation.interpreters import describe_this


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> TritonInstallation:
    """An installation like the wheel's, whose stub does nothing."""
    folder = tmp_path / "tritonserver"
    python = Interpreter(sys.executable, sys.executable, "3.11", str(executable(tmp_path / "libpython3.11.so", "")))
    executable(folder / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", "exit 1")
    (folder / "backends" / "python").mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (folder / "backends" / "python" / name).touch()
    return TritonInstallation(executable(folder / "bin" / "tritonserver", "exit 0"), folder, python)


def set_stub(installation: TritonInstallation, script: str) -> Path:
    assert installation.wheel is not None
    (stub,) = (installation.wheel / "python_backend_stubs").glob("*/*")
    return executable(stub, script)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_tritonserver_on_path_is_preferred(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = executable(folder.parent / "tritonserver", "exit 0")
    monkeypatch.setenv("PATH", str(folder.parent), prepend=os.pathsep)
    assert find_triton() == TritonInstallation(binary)
    arguments, environment = lay_out(find_triton(), folder)
    assert arguments == []
    assert environment.items() >= os.environ.items()


@pytest.mark.parametrize("lacking", ["nothing", "pytriton", "onnxruntime", "NumPy 1", "Python 3.12", "libpython"])
def test_missing_packages_come_from_a_private_environment(
    lacking: str, wheel: TritonInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Interpreter("/private/bin/python", "/usr/bin/python3.11", "3.11", "/usr/lib/libpython3.11.so")
    this = replace(
        private,
        version="3.13" if lacking == "Python 3.12" else "3.12",
        library="" if lacking == "libpython" else "/lib.so",
    )
    place = importlib.util.spec_from_loader("pytriton", None, is_package=True)
    assert place is not None
    assert wheel.wheel is not None
    place.submodule_search_locations = [str(wheel.wheel.parent)]
    specs = {name: place for name in ("pytriton", "onnxruntime") if name != lacking}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        patch.setattr(triton, "describe_this", lambda: this)
        patch.setattr(importlib.util, "find_spec", specs.get)
        patch.setattr(importlib.metadata, "version", lambda _: "2.1.0" if lacking == "NumPy 1" else "1.26.4")
        patch.setattr(triton, "private_environment", lambda: private)
        found = find_triton()
    if lacking == "nothing":
        assert found == TritonInstallation(wheel.binary, wheel.wheel, this)
    else:
        assert found.python == private
        assert found.binary == Path("/private/lib/python3.11/site-packages/pytriton/tritonserver/bin/tritonserver")


@pytest.mark.triton
def test_the_stub_runs_in_what_was_laid_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_triton()
    if found.python is None:
        pytest.skip("a tritonserver on PATH brings its own")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    arguments, environment = lay_out(found, folder)
    assert arguments == [f"--backend-directory={folder / 'backends'}"]
    assert (folder / "backends" / "onnxruntime" / "model.py").is_file()
    assert not (folder / "backends" / "python" / "libtriton_python.so").is_symlink()
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    outcome = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False)
    assert "Expected 9 arguments" in outcome.stdout + outcome.stderr
    first = shutil.which("python3", path=environment["PATH"])
    assert first == str(Path(found.python.executable).with_name("python3"))
    assert "PYTHONPATH" not in environment
    assert "pytriton" not in sys.modules


def test_a_stub_that_its_installer_alone_may_run_is_named(wheel: TritonInstallation, folder: Path) -> None:
    set_stub(wheel, "exit 1").chmod(0)
    with pytest.raises(ServerError, match=r"expected a program that this user may run\. .*chmod a\+rx "):
        lay_out(wheel, folder)


def test_a_python_without_a_shared_library_is_refused(wheel: TritonInstallation, folder: Path) -> None:
    # The message of the dynamic loader.
    message = "stub: error while loading shared libraries: libpython3.so: cannot open shared object file"
    set_stub(wheel, f"echo {message!r} >&2; exit 127")
    with pytest.raises(ServerError, match=r"libpython3\.so: cannot open .* Install its shared library"):
        lay_out(wheel, folder)


def test_this_python_is_described() -> None:
    this = describe_this()
    assert this.executable == sys.executable
    assert this.version == f"{sys.version_info.major}.{sys.version_info.minor}"
