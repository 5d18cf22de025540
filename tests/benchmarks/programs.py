"""Benchmarks as programs of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

__all__ = ["report_of", "run_benchmark"]


def run_benchmark(
    module: str, *options: object, code: int = 0, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python -m plurum.benchmarks.MODULE` and check the exit code."""
    command = [sys.executable, "-m", f"plurum.benchmarks.{module}", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert ended.returncode == code, ended.stderr[-5000:]
    return ended


def report_of(module: str, *options: object) -> Any:
    """Run a benchmark and return the JSON that it prints, which states machine and versions."""
    report = json.loads(run_benchmark(module, *options).stdout)
    assert report["machine"]["cores"] >= 1
    assert {"onnxruntime", "triton", "tritonclient", "python"} <= set(report["versions"])
    return report
