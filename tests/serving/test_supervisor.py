"""What is watched is healed, or given up with a reason; and others can see which."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from plurum.errors import ServerError
from plurum.serving import ServerSettings, SupervisionSettings, Supervisor
from plurum.serving.leftovers import SHARED_MEMORY, claim, processes_of, sweep_dead_servers
from plurum.serving.status import Status, StatusServer
from plurum.serving.stubs import is_running, stubs_of

FREE = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readiness_is_what_is_known_and_liveness_is_not() -> None:
    status = Status()
    with StatusServer(status, "127.0.0.1", 0) as said:
        assert asked(f"{said.url}/v2/health/ready") == (503, "it is starting\n")
        status.answers()
        assert asked(f"{said.url}/v2/health/ready") == (200, "")
        status.is_away("the process of voter has died")
        assert asked(f"{said.url}/v2/health/ready") == (503, "the process of voter has died\n")
        assert asked(f"{said.url}/v2/health/live") == (200, "")
        assert asked(f"{said.url}/elsewhere")[0] == 404
        status.faults.labels("late").inc()
        page = asked(f"{said.url}/metrics")[1]
        assert 'plurum_faults_total{kind="late"} 1.0' in page
        assert "plurum_ready 0.0" in page
        with pytest.raises(ServerError, match=r"port \d+ on 127\.0\.0\.1 can't be listened on: Address already in use"):
            StatusServer(status, "127.0.0.1", int(said.url.rpartition(":")[2]))


def test_who_was_last_seen_long_ago_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status()
    status.answers()
    assert status.reason() is None
    late = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert status.reason() == "it was last seen to answer 60 s ago"


def test_a_stopped_process_counts_as_dead_and_is_killed() -> None:
    name = "plurum_0123456789ab_"
    with subprocess.Popen([sys.executable, "-c", "input()", name], stdin=subprocess.PIPE) as process:
        while not is_running(process.pid, name):
            time.sleep(0.01)
        assert stubs_of(name) == {}
        process.send_signal(signal.SIGSTOP)
        while is_running(process.pid, name):
            time.sleep(0.01)
        assert process.wait(10) == -signal.SIGKILL
    assert not is_running(os.getpid(), name)


def test_a_stub_is_known_by_its_models_file_and_one_without_is_passed_over(tmp_path: Path) -> None:
    name = "plurum_0123456789ab_"
    file = tmp_path / "models" / "voter" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text("input()")
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    ["triton_python_backend_stub", word, name], executable=sys.executable, stdin=subprocess.PIPE
                )
            )
            for word in (str(file), "-")
        ]
        try:
            while len(processes_of(name)) < 2:
                time.sleep(0.01)
            assert stubs_of(name) == {started[0].pid: "voter"}
        finally:
            for process in started:
                process.kill()


def test_only_a_dead_owners_server_is_swept() -> None:
    place = Path(tempfile.gettempdir())
    alive, dead = (Path(tempfile.mkdtemp(prefix=f"plurum_{digit * 12}_", dir=place)) for digit in "ab")
    memory = [SHARED_MEMORY / f"plurum_{digit * 12}_x" for digit in "ab"]
    for path in memory:
        path.write_bytes(b"x")
    lock = claim(alive)
    try:
        let_go = claim(dead)
        assert let_go is not None
        os.close(let_go)
        sweep_dead_servers()
        assert alive.exists()
        assert not dead.exists()
        assert [path.exists() for path in memory] == [True, False]
    finally:
        assert lock is not None
        os.close(lock)
    sweep_dead_servers()
    assert not alive.exists()
    assert not memory[0].exists()


@pytest.mark.triton
def test_a_server_that_can_not_be_started_again_is_given_up(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    status = Status()
    with Supervisor(copy, FREE, SupervisionSettings(attempts=2), status) as supervisor:
        assert status.reason() is None
        (name,) = {path.name[:20] for path in SHARED_MEMORY.glob("plurum_*") if _is_of(copy, path.name[:20])}
        (copy / "voter" / "1" / "ensemble.json").unlink()
        os.kill(_triton(name), signal.SIGKILL)
        with pytest.raises(ServerError, match=r"given up after 2 restarts: .*voter"):
            supervisor.watch()
        assert "ended by itself (exit code -9)" in str(status.reason())
    for log in Path(tempfile.gettempdir()).glob("plurum_*_triton.log"):
        if str(copy) in log.read_text(errors="replace") or name in log.name:
            log.unlink()


def _triton(name: str) -> int:
    (found,) = set(processes_of(name)) - set(stubs_of(name))
    return found


def _is_of(repository: Path, name: str) -> bool:
    """Whether the server `name` serves `repository`: its models are links into it."""
    links = Path(tempfile.gettempdir()).glob(f"{name}*/models/voter/1")
    return any(link.resolve().is_relative_to(repository.resolve()) for link in links)
