"""`plurum serve`, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
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

FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


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
            yield process, process.stdout.readline()
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
        assert set(urls) == {"http", "grpc", "metrics"}
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
def test_it_says_where_it_answers_and_how_it_ended_when_triton_dies(repository: Path) -> None:
    with serving(repository) as (process, line):
        assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", line)
        assert process.stdout is not None
        assert re.fullmatch(r"gRPC     127\.0\.0\.1:\d+\n", process.stdout.readline())
        assert re.fullmatch(r"metrics  http://127\.0\.0\.1:\d+/metrics\n", process.stdout.readline())
        triton, name = server_of(process)
        os.kill(triton, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(r"plurum: Triton ended by itself \(exit code -9\): .*its whole log is in \S+\n", err)
    log = Path(err.split()[-1])
    assert leftovers(name) == [log]
    log.unlink()


@pytest.mark.triton
def test_killed_outright_it_leaves_no_server(repository: Path) -> None:
    with serving(repository) as (process, _):
        _, name = server_of(process)
        process.kill()
    deadline = time.monotonic() + 20
    while processes_of(name) and time.monotonic() < deadline:
        time.sleep(0.1)
    # Only files in the temporary folder are nobody's any more.
    files = list(Path(tempfile.gettempdir()).glob(f"{name}*"))
    assert leftovers(name) == files
    for path in files:
        path.unlink() if path.is_file() else shutil.rmtree(path)


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
