"""Commands that run until a signal, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Ended", "run_until_signal"]


class Ended(NamedTuple):
    """Exit code and output of a process; `lines` came before the signal."""

    returncode: int
    lines: list[str]
    stdout: str
    stderr: str


def run_until_signal(
    *arguments: object,
    lines: int,
    end: signal.Signals = signal.SIGTERM,
    meanwhile: Callable[[list[str]], object] = lambda _: None,
    **options: Any,
) -> Ended:
    """Run `plurum` with these arguments, wait for lines on standard output, and send a signal."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "plurum", *map(str, arguments)]
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
