"""`plurum demo`, as a user runs it."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from plurum.spec import read_ensemble

if TYPE_CHECKING:
    from tests.conftest import Demo

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(600)]


def test_it_says_what_it_found(demo: Demo) -> None:
    ensemble = read_ensemble(demo.folder / "runs" / "demo" / "ensemble.json")
    assert len(ensemble.members) == 3
    for member in ensemble.members:
        assert member.validation is not None
        assert re.search(rf"{member.name}.*{member.validation.accuracy:.4f}", demo.output)
    assert re.search(rf"the ensemble.*{ensemble.scores['validation'].accuracy:.4f}", demo.output)
    served = re.findall(r"over (gRPC|HTTP): \d+ held-out images, accuracy of the served labels (\d\.\d+)", demo.output)
    assert [protocol for protocol, _ in served] == ["gRPC", "HTTP"]
    assert min(float(accuracy) for _, accuracy in served) >= 0.97
    assert all(float(difference) <= 1e-3 for difference in re.findall(r"probabilities within (\S+);", demo.output))
    labels = r'class="\w+",ensemble="demo",release="[0-9a-f]{12}"'
    assert re.search(rf"plurum_predictions_total\{{{labels}\}} 0 -> [1-9]", demo.output)
    # Four minutes of two cores; wall-clock time would depend on other load.
    assert demo.cpu_s < 480


def test_it_leaves_its_files_where_it_says_and_nothing_else(demo: Demo) -> None:
    assert [path.name for path in demo.folder.iterdir()] == ["runs"]
    run = demo.folder / "runs" / "demo"
    assert (run / "model_repository" / "ensemble" / "config.pbtxt").is_file()
    assert len(list((run / "held_out").rglob("*.png"))) == read_ensemble(run / "ensemble.json").data.images["test"]
    assert list(run.rglob(".*")) == []


def test_its_report_opens(demo: Demo) -> None:
    """The report is one self-contained page with all plots, and agrees with the demo's output."""
    report = demo.folder / "runs" / "demo" / "report" / "report.html"
    assert str(report.relative_to(demo.folder)) in demo.output.replace("\n", "")
    page = report.read_text(encoding="utf-8")
    HTMLParser().feed(page)
    sources = re.findall(r'<img[^>]+src="([^"]*)"', page)
    assert len(sources) >= 7
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    accuracy = read_ensemble(demo.folder / "runs" / "demo" / "ensemble.json").scores["test"].accuracy
    assert f"{accuracy:.4f}" in page or f"{accuracy:.1%}" in page


def files_of(run: Path) -> dict[Path, int]:
    paths = [*run.glob("members/*/checkpoint.safetensors"), *run.glob("model_repository/*/1/model.onnx")]
    return {path: path.stat().st_mtime_ns for path in paths}


def test_a_second_run_uses_again_what_is_done(demo: Demo) -> None:
    before = files_of(demo.folder / "runs" / "demo")
    assert len(before) == 6
    again = demo.again()
    assert files_of(demo.folder / "runs" / "demo") == before
    assert again.took_s < demo.took_s / 2
    accuracies = r"accuracy of the served labels (\d\.\d+)"
    assert re.findall(accuracies, again.output) == re.findall(accuracies, demo.output)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    command = [sys.executable, "-m", "plurum", "demo", "--out", str(tmp_path), "--fresh"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "is not a run and not empty" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
