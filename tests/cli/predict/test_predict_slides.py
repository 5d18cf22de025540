"""`plurum predict` with slides in a separate process, with a real server."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from plurum.cli.predict.slides import _SlideProgress, journal_settings
from plurum.client.slides.heat_maps import SLIDE_FILES
from plurum.serving import Server
from plurum.settings.client import SlideOptions
from tests.cli.processes import predict
from tests.client.slides.slide_writer import PlantedTile, write_slide_file

# Sixteen tiles in a row.
CUT = ("--tile-size", 32, "--microns-per-pixel", 1.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image of a few pixels with a slide's file extension."""
    return write_slide_file(tmp_path_factory.mktemp("slides") / "slide.svs", 2048, 3, PlantedTile())


def manifest_of(folder: Path, slide: Path) -> Path:
    """Two slides of one patient, and an image of another patient."""
    shutil.copy(slide, folder / "a.svs")
    write_slide_file(folder / "b.svs", 1024, 3, PlantedTile(side=0.3, x=0.35, y=0.35))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "c.png")
    (folder / "list.csv").write_text("path,patient\na.svs,P1\nc.png,P2\nb.svs,P1\n")
    return folder / "list.csv"


@pytest.mark.triton
def test_a_slide_has_a_row_and_a_folder(served: Server, slide: Path, tmp_path: Path) -> None:
    done = predict(slide, *CUT, "--slides", tmp_path / "out", "--url", served.urls.grpc, "--heat-class", "three")
    assert done.returncode == 0
    _, row = done.stdout.splitlines()
    said = json.loads((tmp_path / "out" / "slide" / "slide.json").read_text())
    assert row.split()[:3] == [str(slide), said["label"], f"{said['confidence']:.3f}"]
    assert said["tiles_asked"] + said["tiles_skipped"] == 16 * 16
    cut, totals = done.stderr.splitlines()
    tiles = f"{said['tiles_asked']} tiles classified, {said['tiles_skipped']} without tissue"
    assert cut == f"{slide}: {tiles}; on level 2, 1 µm per pixel"
    assert totals == f"1 classified, {int(said['review'])} to review, 0 failed"
    assert sorted(path.name for path in (tmp_path / "out" / "slide").iterdir()) == sorted(SLIDE_FILES)


@pytest.mark.triton
def test_slides_and_images_of_patients_in_one_table(served: Server, slide: Path, tmp_path: Path) -> None:
    listed = manifest_of(tmp_path, slide)
    words = (listed, *CUT, "--url", served.urls.grpc, "--out", tmp_path / "out.csv")
    done = predict(*words, "--patients", tmp_path / "patients.csv", "--patient-rule", "mean")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["a.svs", "c.png", "b.svs"]
    patients = pd.read_csv(tmp_path / "patients.csv").set_index("patient")
    mean = (float(rows[0]["p_seven"]) + float(rows[2]["p_seven"])) / 2
    assert patients.loc["P1", "p_seven"] == pytest.approx(mean, abs=2e-6)
    assert patients.loc["P2", "p_seven"] == pytest.approx(float(rows[1]["p_seven"]), abs=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.svs", "b.svs", "c.png", "list.csv", "out.csv", "patients.csv")
    ]


@pytest.mark.triton
def test_an_interrupted_run_resumes_after_the_finished_slides(served: Server, slide: Path, tmp_path: Path) -> None:
    listed = manifest_of(tmp_path, slide)
    whole = (tmp_path / "b.svs").read_bytes()
    (tmp_path / "b.svs").write_bytes(whole[: len(whole) // 2])
    words = (listed, "--url", served.urls.grpc, "--out", tmp_path / "out.csv", "--slides", tmp_path / "kept")
    first = predict(*words, *CUT)
    assert first.returncode == 1
    assert f"{tmp_path / 'b.svs'}: image is corrupt or truncated: " in first.stderr
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a"]
    (tmp_path / "b.svs").write_bytes(whole)
    other = predict(*words, "--tile-size", 64)
    assert other.returncode == 2
    assert "of something else" in other.stderr or "--fresh" in other.stderr
    again = predict(*words, *CUT)
    assert again.returncode == 0
    assert "resuming: 2 of 3 images already have predictions" in again.stderr
    assert f"{tmp_path / 'b.svs'}: " in again.stderr
    assert f"{tmp_path / 'a.svs'}: " not in again.stderr
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["a", "b"]


@pytest.mark.triton
def test_a_half_broken_slide_ends_in_one_line_that_names_the_tile(served: Server, slide: Path, tmp_path: Path) -> None:
    broken, path = bytearray(slide.read_bytes()), tmp_path / "broken.tif"
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[3 * 8 + 4], page.databytecounts[3 * 8 + 4]
    broken[offset : offset + count] = b"\0" * count
    path.write_bytes(broken)
    done = predict(path, "--slide", "--slides", tmp_path / "out", "--url", served.urls.grpc)
    assert done.returncode == 1
    line, totals = done.stderr.splitlines()
    start = f"{path}: image is corrupt or truncated: tile (column 4, row 3) of level 0, at pixel (1024, 768): "
    assert line.startswith(start)
    assert totals == "0 classified, 0 to review, 1 failed"
    assert not (tmp_path / "out").exists()


@pytest.mark.triton
def test_a_heat_map_of_an_unknown_class_is_refused(served: Server, slide: Path) -> None:
    done = predict(slide, "--heat-class", "CE", "--url", served.urls.grpc)
    assert done.returncode == 2
    assert done.stderr.startswith("plurum: heat_class: expected one of zero, one, two, ")
    assert done.stderr.count("\n") == 1


def test_progress_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr("plurum.cli.predict.slides.time.monotonic", lambda: now[0])
    progress = _SlideProgress(lines.append)
    for done in range(1, 101):
        now[0] += 0.5
        progress("a.tif", done, 200)
    progress("b.tif", 1, 10)
    assert lines[0] == "a.tif: 21 of 200 tiles, 2.1/s, 1 min 25 s left"
    assert len(lines) == 4


def test_what_slides_answers_depend_on_is_noted_where_something_was_chosen() -> None:
    assert journal_settings(SlideOptions(), "mean") == {}
    chosen = journal_settings(SlideOptions(microns_per_pixel=0.5, tile_size=64), "mean")
    assert chosen == {"slides": {"microns_per_pixel": "0.5", "tile_size": "64", "rule": "mean"}}
