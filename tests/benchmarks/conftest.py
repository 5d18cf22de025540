"""Benchmarks in the process of the tests, and a folder that keeps their exported graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that benchmarks take for `--work`: each graph is exported once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def report_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A function that runs the command of a benchmark with options and returns the JSON that it prints."""

    def run(command: Callable[..., None], **options: object) -> Any:
        command(**options)
        report = json.loads(capsys.readouterr().out)
        assert report["machine"]["cores"] >= 1
        assert {"onnxruntime", "triton", "tritonclient", "python"} <= set(report["versions"])
        return report

    return run
