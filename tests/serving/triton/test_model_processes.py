"""A process that is gone is missed; one that was replaced is not."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from plurum.serving.triton.model_processes import ModelProcesses
from plurum.serving.triton.processes import MARK, ServerProcesses

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ServerProcesses:
    """Those that this test starts."""
    name = f"plurum_{uuid.uuid4().hex}"
    monkeypatch.setenv(MARK, name)
    return ServerProcesses(name, os.getsid(0))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that looks like a model's; it ends with its standard input."""
    started: list[subprocess.Popen[bytes]] = []

    def stub(model: str) -> subprocess.Popen[bytes]:
        script = tmp_path / "models" / model / "1" / "model.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text("echo\nread line\n")
        words = ["triton_python_backend_stub", str(script)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, executable="/bin/sh", stdin=pipe, stdout=pipe))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"\n"
        return started[-1]

    yield stub
    for process in started:
        process.kill()
        process.communicate()


def presence_of(processes: ServerProcesses, *, loaded: bool = True, instances: int = 1) -> ModelProcesses:
    return ModelProcesses(processes, lambda model: 0 if model == "ensemble" else instances, lambda _: loaded)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_an_exited_process_is_reported_until_another_replaces_it(processes: ServerProcesses, start: Start) -> None:
    presence = presence_of(processes)
    voter, _ = start("voter"), start("preprocess")
    presence.watch(["voter", "preprocess", "ensemble"])
    assert presence.find_unhealthy() == ()
    end(voter)
    assert presence.find_unhealthy() == ("voter",)
    other = start("voter")
    assert processes.stubs()[psutil.Process(other.pid)] == "voter"
    assert presence.find_unhealthy() == ()
    end(other)
    assert presence.find_unhealthy() == ("voter",)
    presence.forget("voter")
    assert presence.find_unhealthy() == ()
    assert "voter" not in presence


def test_with_two_instances_both_must_be_replaced(processes: ServerProcesses, start: Start) -> None:
    presence = presence_of(processes, instances=2)
    first, _ = start("voter"), start("voter")
    presence.watch(["voter"])
    end(first)
    start("voter")
    assert presence.find_unhealthy() == ("voter",)
    start("voter")
    assert presence.find_unhealthy() == ()


def test_a_former_version_is_ignored(processes: ServerProcesses, start: Start) -> None:
    presence = presence_of(processes)
    former = start("voter")
    presence.watch(["voter"])
    presence.expect_reload("voter")
    assert "voter" not in presence
    present = start("voter")
    presence.watch(["voter"])
    end(present)
    assert presence.find_unhealthy() == ("voter",)
    present = start("voter")
    assert presence.find_unhealthy() == ()
    end(former)
    assert presence.find_unhealthy() == ()


def test_models_that_triton_does_not_serve_are_not_reported(processes: ServerProcesses, start: Start) -> None:
    presence = presence_of(processes, loaded=False)
    voter = start("voter")
    presence.watch(["voter"])
    end(voter)
    assert presence.find_unhealthy() == ()
