"""Benchmarks as programs of their own."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["run_benchmark"]


def run_benchmark(
    module: str, *options: object, code: int = 0, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python -m plurum.benchmarks.MODULE` and check the exit code."""
    command = [sys.executable, "-m", f"plurum.benchmarks.{module}", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert ended.returncode == code, ended.stderr[-5000:]
    return ended
