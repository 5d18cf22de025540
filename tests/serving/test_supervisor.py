"""What is watched is healed, or given up with a reason; and others can see which."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from plurum.errors import ServerError
from plurum.serving import ServerSettings, SupervisionSettings, Supervisor
from plurum.serving.processes import ServerProcesses
from plurum.serving.status import Status, StatusServer

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


@pytest.mark.triton
def test_a_server_that_can_not_be_started_again_is_given_up(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    status = Status()
    with Supervisor(copy, FREE, SupervisionSettings(attempts=2), status) as supervisor:
        assert status.reason() is None
        server = ServerProcesses.started_by(os.getpid())
        assert server is not None
        (copy / "voter" / "1" / "ensemble.json").unlink()
        os.kill(server.session, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"given up after 2 restarts: .*voter"):
            supervisor.watch()
        assert "ended by itself (exit code -9)" in str(status.reason())
    for log in Path(tempfile.gettempdir()).glob("plurum_*_triton.log"):
        if str(copy) in log.read_text(errors="replace") or server.name in log.name:
            log.unlink()
