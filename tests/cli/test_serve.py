"""`plurum serve` in a separate process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.processes import ServerProcesses
from tests.cli.processes import plurum_command, server_of, serving
from tests.serving.servers import FREE_OPTIONS

NOBODY = 65534


def leftovers(server: ServerProcesses) -> list[object]:
    return [
        *server.find(),
        *SHARED_MEMORY.glob(f"{server.name}*"),
        *Path(tempfile.gettempdir()).glob(f"{server.name}*"),
    ]


@pytest.mark.triton
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_server_and_leaves_nothing(repository: Path, end: signal.Signals) -> None:
    with serving(repository, "--json") as (process, line):
        urls = json.loads(line)
        assert set(urls) == {"http", "grpc", "metrics", "status"}
        with urllib.request.urlopen(f"{urls['http']}/v2/models/ensemble/ready", timeout=10) as answer:
            assert answer.status == 200
        server = server_of(process)
        assert leftovers(server)
        process.send_signal(end)
        # A second Ctrl-C does not interrupt the clean-up.
        time.sleep(0.3)
        process.send_signal(end)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert leftovers(server) == []


@pytest.mark.triton
def test_under_nohup_the_server_outlives_its_terminal(repository: Path) -> None:
    with serving(repository, "--json", before=("nohup",)) as (process, line):
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        with urllib.request.urlopen(f"{json.loads(line)['status']}/v2/health/ready", timeout=10) as answer:
            assert answer.status == 200
        server = server_of(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert leftovers(server) == []


@pytest.mark.triton
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of other users")
def test_files_of_other_users_are_left_alone_and_delay_nothing(repository: Path) -> None:
    with serving(repository, "--json") as (process, _):
        server = server_of(process)
        planted = SHARED_MEMORY / f"{server.name}planted"
        planted.touch()
        os.chown(planted, NOBODY, NOBODY)
        named = ["tail", "-f", f"/tmp/{server.name}triton.log", "/dev/null"]  # noqa: S108
        with subprocess.Popen(named, user=NOBODY, stderr=subprocess.DEVNULL) as stranger:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
            assert stranger.poll() is None
            stranger.kill()
    assert (process.returncode, err) == (0, "")
    assert leftovers(server) == [planted]
    planted.unlink()


@pytest.mark.triton
def test_a_signal_during_the_start_leaves_nothing(repository: Path) -> None:
    command = plurum_command("serve", repository, *FREE_OPTIONS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        server = None
        deadline = time.monotonic() + 20
        while server is None and time.monotonic() < deadline:
            server = ServerProcesses.started_by(process.pid)
        assert server is not None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert leftovers(server) == []


@pytest.mark.triton
def test_serve_prints_its_addresses_and_restarts_a_killed_triton(repository: Path) -> None:
    with serving(repository) as (process, line):
        assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", line)
        assert process.stdout is not None
        assert re.fullmatch(r"gRPC     127\.0\.0\.1:\d+\n", process.stdout.readline())
        assert re.fullmatch(r"metrics  http://127\.0\.0\.1:\d+/metrics\n", process.stdout.readline())
        status = re.fullmatch(r"status   (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert status is not None
        server = server_of(process)
        os.kill(server.session, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _restarted(status[1]):
            time.sleep(0.1)
        with urllib.request.urlopen(f"{line.split()[1]}/v2/models/ensemble/ready", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    first, second = err.splitlines()
    assert re.search(r"not ready: Triton exited unexpectedly \(exit code -9\): .*Its complete log is in \S+$", first)
    assert re.search(r"ready again after \d+\.\d s$", second)
    log = Path(first.split()[-1])
    assert leftovers(server) == [log]
    log.unlink()


def _restarted(status: str) -> bool:
    with urllib.request.urlopen(f"{status}/metrics", timeout=10) as page:
        return "plurum_restarts_total 1.0" in page.read().decode()


@pytest.mark.triton
def test_a_killed_serve_leaves_no_server_and_the_next_one_removes_its_files(repository: Path) -> None:
    with serving(repository) as (process, _):
        server = server_of(process)
        process.kill()
    with serving(repository) as (process, line):
        assert line
        # Another server that starts meanwhile may have removed them.
        assert leftovers(server) == []
