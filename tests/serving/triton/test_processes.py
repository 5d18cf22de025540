"""Only a server's own processes are counted, watched and ended, whatever other processes are called."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import psutil
import pytest

from plurum.serving.triton.processes import MARK, ServerProcesses, is_alive

Start = Callable[..., subprocess.Popen[str]]
NOBODY = 65534


@pytest.fixture
def name() -> str:
    return f"plurum_{uuid.uuid4().hex[:12]}_"


@pytest.fixture
def start(name: str) -> Iterator[Start]:
    """Start a process that waits, in a session of its own and marked as one of the server's unless told otherwise."""
    started: list[subprocess.Popen[str]] = []

    def process(
        *words: str,
        script: str = "print('ready', flush=True); input()",
        mark: str | None = name,
        new_session: bool = True,
        user: int | None = None,
    ) -> subprocess.Popen[str]:
        environment = os.environ | ({MARK: mark} if mark is not None else {})
        command = [words[0] if words else sys.executable, "-c", script, *words[1:]]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command,
                executable="/usr/bin/python3" if user else sys.executable,
                env=environment,
                stdin=pipe,
                stdout=pipe,
                text=True,
                start_new_session=new_session,
                user=user,
            )
        )
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.communicate()


def test_killed_processes_have_exited(name: str, start: Start) -> None:
    """They hold memory, which the kernel takes its time to take back."""
    leader = start(script="held = bytearray(400_000_000); print('ready', flush=True); input()")
    processes = ServerProcesses(name, leader.pid)
    assert processes.find() == [psutil.Process(leader.pid)]
    processes.end()
    assert processes.find() == []
    assert leader.wait() == -SIGKILL
    processes.end()


def test_a_name_in_a_command_line_is_not_enough(name: str, start: Start) -> None:
    leader = start()
    start(f"tail -f {name}triton.log", name, mark=None)
    start(f"tail -f {name}triton.log", name, new_session=False)
    assert [process.pid for process in ServerProcesses(name, leader.pid).find()] == [leader.pid]


def test_a_later_session_of_the_same_number_is_another(name: str, start: Start) -> None:
    other = start(mark="plurum_000000000000_")
    unmarked = start(mark=None)
    for leader in (other, unmarked):
        processes = ServerProcesses(name, leader.pid)
        assert processes.find() == []
        processes.end()
        assert leader.poll() is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of other users")
def test_processes_of_another_user_are_ignored(name: str, start: Start) -> None:
    stranger = start("triton_python_backend_stub", f"/var/lib/{name}x/models/voter/1/model.py", user=NOBODY)
    processes = ServerProcesses(name, stranger.pid)
    assert processes.find() == []
    assert processes.stubs() == {}
    processes.end()
    assert stranger.poll() is None


def test_orphans_are_found_and_ended(name: str, start: Start) -> None:
    child = "[sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL"
    leader = start(script=f"import subprocess, sys; c = subprocess.Popen({child}); print('ready', flush=True); input()")
    processes = ServerProcesses(name, leader.pid)
    # The kernel shows a new program's environment a moment after it has started.
    while len(processes.find()) < 2:
        time.sleep(0.01)
    leader.kill()
    leader.wait()
    (orphan,) = processes.find()
    processes.end()
    assert not is_alive(orphan)


def test_a_stub_is_recognised_by_the_file_of_its_model(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, name)
    file = tmp_path / "models" / "voter" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text("input()")
    words = ([str(file)], ["-"])
    started = [
        subprocess.Popen(["triton_python_backend_stub", *rest], executable=sys.executable, stdin=subprocess.PIPE)
        for rest in words
    ]
    try:
        processes = ServerProcesses(name, os.getsid(0))
        while len(processes.find()) < 2:
            time.sleep(0.01)
        assert {process.pid: of for process, of in processes.stubs().items()} == {started[0].pid: "voter"}
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_stopped_process_counts_as_dead_and_is_killed(start: Start) -> None:
    started = start()
    process = psutil.Process(started.pid)
    assert is_alive(process)
    os.kill(started.pid, SIGSTOP)
    while is_alive(process):
        time.sleep(0.01)
    assert started.wait(10) == -SIGKILL
    assert not is_alive(process)


def test_the_server_that_a_process_has_started_is_found(name: str, start: Start) -> None:
    options = f"stdout=subprocess.DEVNULL, env={{'{MARK}': '{name}'}}, start_new_session=True"
    child = f"c = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, {options})"
    owner = start(mark=None, script=f"import subprocess, sys; {child}; print('ready', flush=True); input()")
    while (processes := ServerProcesses.started_by(owner.pid)) is None:
        time.sleep(0.01)
    assert processes.name == name
    (leader,) = processes.find()
    assert (leader.pid, leader.ppid()) == (processes.session, owner.pid)
    assert ServerProcesses.started_by(leader.pid) is None
    processes.end()
