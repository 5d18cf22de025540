"""What is watched is healed, or given up with a reason; and others can see which."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import generate_latest

from plurum.errors import RepositoryError, ServerError
from plurum.serving import Supervisor
from plurum.serving.status import Status, StatusServer
from tests.serving.servers import FREE
from tests.serving.waiting import wait_until


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readiness_follows_the_last_check_and_liveness_does_not() -> None:
    status = Status()
    with StatusServer(status, "127.0.0.1", 0) as said:
        assert asked(f"{said.url}/v2/health/ready") == (503, "the server is starting\n")
        status.mark_ready()
        assert asked(f"{said.url}/v2/health/ready") == (200, "")
        status.mark_unready("the process of voter exited")
        assert asked(f"{said.url}/v2/health/ready") == (503, "the process of voter exited\n")
        assert asked(f"{said.url}/v2/health/live") == (200, "")
        assert asked(f"{said.url}/elsewhere")[0] == 404
        status.faults.labels("late").inc()
        page = asked(f"{said.url}/metrics")[1]
        assert 'plurum_faults_total{kind="late"} 1.0' in page
        assert "plurum_ready 0.0" in page
        with pytest.raises(ServerError, match=r"got \d+ on 127\.0\.0\.1: Address already in use"):
            StatusServer(status, "127.0.0.1", int(said.url.rpartition(":")[2]))


def test_a_server_without_a_recent_check_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status()
    status.mark_ready()
    assert status.unready_reason() is None
    late = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert status.unready_reason() == "the last confirmed response was 60 s ago"


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the repository, and try to start again, more often."""
    monkeypatch.setattr("plurum.serving.supervisor._REPOSITORY_S", 0.2)
    monkeypatch.setattr("plurum.serving.supervisor._LONGEST_PAUSE_S", 0.2)


def heal_dead(supervisor: Supervisor) -> None:
    """Do what `watch` does, once."""
    time.sleep(0.3)
    fault = supervisor._find_exited()
    assert fault is not None
    supervisor._heal(fault)
    assert supervisor.status.unready_reason() is None


def failed_starts(status: Status) -> float:
    return status.registry.get_sample_value("plurum_faults_total", {"kind": "start"}) or 0.0


@pytest.mark.triton
@pytest.mark.usefixtures("shorter")
def test_a_server_restarts_without_the_repository_it_was_started_from(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    status = Status()
    with Supervisor(copy, FREE, status=status) as supervisor:
        kept = supervisor.snapshot.path
        assert kept.parent.stat().st_mode & 0o777 == 0o700
        shutil.rmtree(copy)
        wait_until(lambda: status.repository_difference() == "the repository no longer exists")
        assert b"plurum_repository_changed 1.0" in generate_latest(status.registry)
        voter = next(process for process, model in supervisor._server.stubs().items() if model == "voter")
        os.kill(voter, signal.SIGKILL)
        heal_dead(supervisor)
        os.kill(supervisor._server.processes()[0], signal.SIGKILL)
        heal_dead(supervisor)
        shutil.copytree(repository, copy)
        wait_until(lambda: status.repository_difference() is None)
    assert not kept.exists()
    told = [record.getMessage() for record in caplog.records if str(copy) in record.getMessage()]
    assert len(told) == 2
    assert told[0].endswith("the server keeps serving its copy")
    assert told[1].endswith("matches the copy that is served again")


@pytest.mark.triton
@pytest.mark.usefixtures("shorter")
def test_a_failed_restart_is_retried(repository: Path) -> None:
    status = Status()
    with Supervisor(repository, FREE, status=status) as supervisor:
        port = urlsplit(supervisor.urls.http).port
        os.kill(supervisor._server.processes()[0], signal.SIGKILL)
        taken = socket.socket()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: supervisor._find_exited() is not None)
        supervisor._server.stop(drain=False)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        threading.Thread(target=_let_go_after_ten_starts, args=(status, taken), daemon=True).start()
        supervisor._restart()
        assert supervisor.status.unready_reason() is None
        page = generate_latest(status.registry).decode()
        assert "plurum_failed_starts 0.0" in page
        assert failed_starts(status) >= 10


def _let_go_after_ten_starts(status: Status, taken: socket.socket) -> None:
    while failed_starts(status) < 10:
        time.sleep(0.05)
    taken.close()


@pytest.mark.triton
def test_files_changed_after_the_export_are_refused(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    metadata = copy / "voter" / "1" / "ensemble.json"
    metadata.write_text(metadata.read_text().replace('"one"', '"x"').replace('"two"', '"one"').replace('"x"', '"two"'))
    message = rf"^{copy}: voter/1/ensemble\.json is not the file that was exported; export it again"
    with pytest.raises(RepositoryError, match=message), Supervisor(copy, FREE):
        pass
    # Also where nothing lists the files.
    (copy / "export.json").unlink()
    with pytest.raises(RepositoryError, match=message), Supervisor(copy, FREE):
        pass


@pytest.mark.triton
def test_a_repository_without_a_list_of_files_gives_a_warning(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    (copy / "export.json").unlink()
    with Supervisor(copy, FREE) as supervisor:
        assert supervisor.status.unready_reason() is None
    assert f"{copy}: no export.json lists its files, so changes to them can't be detected" in caplog.messages
