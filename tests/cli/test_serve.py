"""`plurum serve`, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from plurum.serving.leftovers import SHARED_MEMORY, processes_of

FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "plurum", "serve", *map(str, arguments)]


@contextlib.contextmanager
def serving(repository: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Give a running `plurum serve` and the line that says where it answers."""
    with subprocess.Popen(
        command(repository, *FREE, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr is not None else ""
            yield process, line
        finally:
            process.kill()


def server_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the id of the Triton that `process` has started, and the name of its shared memory."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    match = re.search(r"shm-region-prefix-name=(\w+)", Path(f"/proc/{child}/cmdline").read_text())
    assert match is not None
    return int(child), match[1]


def leftovers(name: str) -> list[object]:
    return [
        *processes_of(name),
        *SHARED_MEMORY.glob(f"{name}*"),
        *Path(tempfile.gettempdir()).glob(f"{name}*"),
    ]


@pytest.mark.triton
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well_and_nothing_is_left(repository: Path, end: signal.Signals) -> None:
    with serving(repository, "--json") as (process, line):
        urls = json.loads(line)
        assert set(urls) == {"http", "grpc", "metrics", "status"}
        with urllib.request.urlopen(f"{urls['http']}/v2/models/ensemble/ready", timeout=10) as answer:
            assert answer.status == 200
        _, name = server_of(process)
        assert leftovers(name)
        process.send_signal(end)
        # A second one, as impatient people send it, does not interrupt the tidying up.
        time.sleep(0.3)
        process.send_signal(end)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert leftovers(name) == []


@pytest.mark.triton
def test_a_signal_while_it_starts(repository: Path) -> None:
    with subprocess.Popen(command(repository, *FREE), stdout=subprocess.PIPE, text=True) as process:
        name = ""
        deadline = time.monotonic() + 20
        while not name and time.monotonic() < deadline:
            with contextlib.suppress(ValueError, AssertionError, OSError):
                _, name = server_of(process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert leftovers(name) == []


@pytest.mark.triton
def test_it_says_where_it_answers_and_starts_triton_again_when_that_dies(repository: Path) -> None:
    with serving(repository) as (process, line):
        assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", line)
        assert process.stdout is not None
        assert re.fullmatch(r"gRPC     127\.0\.0\.1:\d+\n", process.stdout.readline())
        assert re.fullmatch(r"metrics  http://127\.0\.0\.1:\d+/metrics\n", process.stdout.readline())
        status = re.fullmatch(r"status   (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert status is not None
        triton, name = server_of(process)
        os.kill(triton, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _restarted(status[1]):
            time.sleep(0.1)
        with urllib.request.urlopen(f"{line.split()[1]}/v2/models/ensemble/ready", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    first, second = err.splitlines()
    assert re.search(r"not ready: Triton ended by itself \(exit code -9\): .*its whole log is in \S+$", first)
    assert re.search(r"ready again after \d+\.\d s$", second)
    log = Path(first.split()[-1])
    assert leftovers(name) == [log]
    log.unlink()


def _restarted(status: str) -> bool:
    with urllib.request.urlopen(f"{status}/metrics", timeout=10) as page:
        return "plurum_restarts_total 1.0" in page.read().decode()


@pytest.mark.triton
def test_killed_outright_it_leaves_no_server_and_the_next_one_clears_up(repository: Path) -> None:
    with serving(repository) as (process, _):
        _, name = server_of(process)
        process.kill()
    with serving(repository) as (process, line):
        assert line
        assert leftovers(name) == []
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert "a server was killed here before and is cleared away" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent", *FREE), "absent is not there; a model repository is a folder"),
        ((".", *FREE), "is no model repository: no folder in it has a config.pbtxt"),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    outcome = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("plurum: ")
    assert outcome.stderr.count("\n") == 1
    assert reason in outcome.stderr
