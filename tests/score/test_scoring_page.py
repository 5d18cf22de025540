"""Run the command of docs/scoring.md, kill it, and run it again; then run the page's Python."""

from __future__ import annotations

import csv
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image
from pyarrow import parquet

from plurum.client import patients_from_answers
from plurum.score import Scorer
from tests.cascades.linear_cascade import CLASSES, PIXELS
from tests.docs.pages import blocks, commands, run_python

IMAGES = 200
PATIENTS = [f"patient {row // 3}" if row % 10 else "" for row in range(IMAGES)]
# A part is so small that a job is likely to be killed in its middle; nothing depends on it.
OPTIONS = ["--part-rows", "5", "--workers", "2"]


@pytest.fixture
def archive(linear_repository: Path, tmp_path: Path) -> Path:
    """A manifest of 200 images, of which one is broken and one is missing."""
    shutil.copytree(linear_repository, tmp_path / "model_repository")
    (tmp_path / "scans").mkdir()
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "patient", "label"])
        for row in range(IMAGES):
            rows.writerow([f"scans/{row:03}.png", PATIENTS[row], CLASSES[row % 3]])
            Image.fromarray(PIXELS[row % len(PIXELS)]).save(tmp_path / f"scans/{row:03}.png")
    (tmp_path / "scans" / "007.png").write_bytes(b"no image")
    (tmp_path / "scans" / "100.png").unlink()
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_command_resumes_and_each_image_has_one_row(archive: Path) -> None:
    command = next(shlex.split(one) for one in commands("scoring.md") if one.startswith("plurum score"))
    words = [sys.executable, "-m", *command, *OPTIONS]
    first = subprocess.Popen(words, cwd=archive, stderr=subprocess.DEVNULL)
    while first.poll() is None and not list(archive.glob("answers/part-*.parquet")):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    there = {path: path.stat().st_mtime_ns for path in archive.glob("answers/part-*.parquet")}
    assert there
    # Of what a killed worker may leave.
    (archive / "answers" / ".part-000039.parquet.dead").write_bytes(b"half")

    ended = subprocess.run(words, cwd=archive, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    lines = ended.stderr.splitlines()
    assert f" of {IMAGES} images already have rows" in lines[0]
    assert f"{IMAGES - 2} classified, " in lines[-1]
    assert lines[-1].partition("; ")[0].endswith(", 2 failed")
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert not list(archive.glob("answers/.*"))
    check_rows(archive)
    (code,) = blocks("scoring.md", "python")
    assert run_python(code, archive)


def check_rows(archive: Path) -> None:
    rows = ds.dataset(archive / "answers").to_table().to_pylist()
    paths = [str(archive / "scans" / f"{row:03}.png") for row in range(IMAGES)]
    assert [row["path"] for row in rows] == paths
    assert [row["patient"] for row in rows] == PATIENTS
    assert [row["path"][-7:-4] for row in rows if row["error"]] == ["007", "100"]
    scorer = Scorer(archive / "model_repository")
    answers = scorer.answers(paths)
    expected = patients_from_answers(PATIENTS, answers, CLASSES, "mean", scorer.served.point)
    scorer.close()
    assert [row["label"] for row in rows] == [getattr(one, "label", None) for one in answers]
    pooled = parquet.read_table(archive / "patients.parquet").to_pylist()
    assert [row["patient"] for row in pooled] == [one.patient for one in expected]
    for row, one in zip(pooled, expected, strict=True):
        assert (row["label"], row["images"], row["review"], row["failed"]) == (
            one.label, one.images, one.review, one.failed,
        )  # fmt: skip
        np.testing.assert_allclose([row[f"p_{name}"] for name in CLASSES], list(one.probabilities.values()), atol=1e-5)
