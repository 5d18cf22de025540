"""DICOM reports of `plurum predict` through a gateway, gRPC and HTTP, which say the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plurum.serving import Server
from tests.cli.processes import predict
from tests.images.dicom_files import dicom, pydicom
from tests.serving.gateway.gateways import Gateway

pytest.importorskip("highdicom")
pytestmark = [pytest.mark.triton]


def content(item: Any) -> list[Any]:
    """Return the content of a report without what differs between two of the same prediction."""
    parts = [
        (one.ConceptNameCodeSequence[0].CodeMeaning, one.get("TextValue"), one.get("ConceptCodeSequence"), number(one))
        for one in item.get("ContentSequence", [])
    ]
    return parts + [part for one in item.get("ContentSequence", []) for part in content(one)]


def number(item: Any) -> Any:
    values = item.get("MeasuredValueSequence")
    return values and round(float(values[0].NumericValue), 4)


def test_reports_say_the_same(served: Server, small: Gateway, tmp_path: Path) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes(dicom(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)))
    reports = []
    for url in (served.urls.grpc, served.urls.http, small.http):
        done = predict(scan, "--sr", tmp_path / "out", "--url", url, "--pseudonym-key-file", tmp_path / "key")
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / "out").iterdir()
        assert path.name == "scan.sr.dcm"
        if tool := shutil.which("dciodvfy"):
            assert "Error" not in subprocess.run([tool, path], capture_output=True, text=True, check=True).stderr
        reports.append(content(pydicom.dcmread(path)))
    assert "Needs review" in {name for name, *_ in reports[0]}
    assert len(reports[0]) > 20
    assert reports[0] == reports[1] == reports[2]
