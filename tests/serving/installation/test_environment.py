"""The private environment is made once, found again, made anew when broken, and never left half made."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plurum.errors import ServerError
from plurum.serving.installation import PACKAGES, environment, interpreters, private_environment

Run = Callable[[list[str], str], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PLURUM_SERVE_PYTHON", raising=False)
    return tmp_path / "plurum"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Make real virtual environments, but install nothing; the list holds the commands that were run."""
    seen: list[list[str]] = []
    run = environment._run

    def record(command: list[str], failure: str) -> None:
        seen.append(command)
        if "venv" in command:
            run(command, failure)
        elif any(argument.endswith("==99.0") for argument in command):
            raise ServerError("no such version")

    monkeypatch.setattr(environment, "_run", record)
    return seen


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_an_environment_is_made_once_and_repaired(cache: Path, commands: list[list[str]]) -> None:
    made = private_environment()
    assert made.version in {"3.10", "3.11", "3.12"}
    assert Path(made.executable).is_file()
    assert (cache / folders(cache)[0]).stat().st_mode & 0o777 == 0o700
    count = len(commands)
    assert private_environment() == made
    assert len(commands) == count
    (cache / folders(cache)[0] / "bin" / "python").unlink()
    assert private_environment() == made
    assert len(commands) == 2 * count
    assert len(folders(cache)) == 1


def test_other_versions_get_their_own_environment(
    cache: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private_environment()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "pillow" else version(name))
    with caplog.at_level(logging.WARNING):
        private_environment()
    assert len(folders(cache)) == 2
    # That version does not exist, so the one of our list is installed, which is said at each start.
    assert f"pillow=={PACKAGES['pillow']}" in commands[-1]
    said = f"Triton runs pillow {PACKAGES['pillow']}; here it is 99.0"
    assert said in caplog.text
    caplog.clear()
    private_environment()
    assert said in caplog.text


def test_concurrent_processes_make_one_environment(cache: Path, commands: list[list[str]]) -> None:
    threads = [threading.Thread(target=private_environment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([command for command in commands if "venv" in command]) == 1
    assert len(folders(cache)) == 1


def test_without_a_network_there_is_one_line_and_no_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ServerError, match=r"nvidia-pytriton==.* can't be installed \(.*plurum\[embedded\]") as caught:
        private_environment()
    assert "\n" not in str(caught.value)
    assert folders(cache) == []


@pytest.mark.usefixtures("commands")
def test_a_killed_installation_leaves_no_partial_environment(cache: Path) -> None:
    code = """
from plurum.serving.installation import environment
environment._install = lambda *_: input()
environment.private_environment()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not list(cache.glob(".server-*/bin/python")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert folders(cache)[0].startswith(".server-")
    private_environment()
    assert [name.startswith("server-") for name in folders(cache)] == [True]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("chosen", ["/bin/false", "/nowhere/python"])
def test_a_program_that_is_not_python_is_refused(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLURUM_SERVE_PYTHON", chosen)
    with pytest.raises(ServerError, match=rf"expected Python 3\.10 to 3\.12 .*got {chosen}, no Python"):
        private_environment()


@pytest.mark.usefixtures("cache")
def test_a_missing_python_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "describe", lambda _: None)
    monkeypatch.setattr(interpreters, "_from_uv", lambda _: None)
    with pytest.raises(ServerError, match=r"need Python 3\.10, 3\.11 or 3\.12 .* PLURUM_SERVE_PYTHON"):
        private_environment()


def test_looking_for_pip_changes_nothing_in_the_process() -> None:
    code = "from plurum.serving.installation.interpreters import has_pip; print(has_pip()); import setuptools"
    outcome = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stdout) == (0, "True\n"), outcome.stderr


def test_a_cache_that_others_may_write_to_is_refused(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(ServerError, match="only its owner, you, can write to"):
        private_environment()


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_the_installed_environment_runs_the_models() -> None:
    python = private_environment().executable
    code = "import numpy, onnxruntime, PIL; print(numpy.__version__, onnxruntime.__version__, PIL.__version__)"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    ours = (PACKAGES["numpy"], *(importlib.metadata.version(name) for name in ("onnxruntime", "pillow")))
    assert tuple(told.stdout.split()) == ours
