"""Commands in processes of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from plurum.serving.triton.processes import ServerProcesses
from tests.serving.servers import FREE_OPTIONS

__all__ = ["Ended", "plurum_command", "predict", "run_until_signal", "server_of", "serving", "started"]


class Ended(NamedTuple):
    """Exit code and output of a process; `lines` came before the signal."""

    returncode: int
    lines: list[str]
    stdout: str
    stderr: str


def plurum_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "plurum", *map(str, arguments)]


def run_until_signal(
    *arguments: object,
    lines: int,
    end: signal.Signals = signal.SIGTERM,
    meanwhile: Callable[[list[str]], object] = lambda _: None,
    **options: Any,
) -> Ended:
    """Run `plurum` with these arguments, wait for lines on standard output, and send a signal."""
    pipe = subprocess.PIPE
    command = plurum_command(*arguments)
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            assert process.stdout is not None
            first = [process.stdout.readline() for _ in range(lines)]
            meanwhile(first)
            process.send_signal(end)
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
    return Ended(process.returncode, first, out, err)


def predict(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        plurum_command("predict", *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "60"} | environment,
    )


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a running command and the first line that it prints; in the end, kill it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr is not None else ""
            yield process, line
        finally:
            process.kill()


def serving(
    repository: Path, *options: str, before: tuple[str, ...] = ()
) -> AbstractContextManager[tuple[subprocess.Popen[str], str]]:
    """Return a running `plurum serve` and its line of URLs.

    Args:
        repository: What is served.
        options: Of the command.
        before: A command that starts it.
    """
    command = [*before, *plurum_command("serve", repository, *FREE_OPTIONS, *options)]
    return started(command, stderr=subprocess.PIPE)


def server_of(process: subprocess.Popen[str]) -> ServerProcesses:
    """Return the server processes that `process` has started."""
    server = ServerProcesses.started_by(process.pid)
    assert server is not None
    return server
