"""ONNX Runtime sends no telemetry from any process of Plurum."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plurum.onnx_graphs.telemetry import forbid_telemetry
from plurum.serving import Server
from plurum.serving.installation import find_triton, lay_out
from tests.serving.servers import triton_of


def left_by(folder: Path, *command: str) -> list[Path]:
    """Return the files that a Python process leaves in its temporary and home folder, both `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(folder), "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    return [path for path in folder.rglob("*") if path.name == ".ses" or "onnxruntime" in str(path.relative_to(folder))]


@pytest.mark.parametrize(
    "code",
    [
        "from plurum.onnx_graphs.telemetry import import_onnxruntime; import_onnxruntime()",
        "import plurum.export.graphs.runtimes",
        "import plurum.benchmarks.tools.local",
    ],
)
def test_no_identifier_and_no_session_is_written(code: str, tmp_path: Path) -> None:
    assert left_by(tmp_path, "-c", code) == []


def test_what_a_user_has_set_stays() -> None:
    environment = {"ORT_DISABLE_TELEMETRY": "0"}
    forbid_telemetry(environment)
    assert environment == {"ORT_DISABLE_TELEMETRY": "0"}


def test_triton_is_started_with_reports_forbidden(tmp_path: Path) -> None:
    assert lay_out(find_triton(), tmp_path)[1]["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.triton
def test_processes_of_a_server_report_nothing(served: Server) -> None:
    environment = Path(f"/proc/{triton_of(served)}/environ").read_bytes().split(b"\0")
    assert b"ORT_DISABLE_TELEMETRY=1" in environment
