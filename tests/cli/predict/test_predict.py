"""`plurum predict` in a separate process, with a real server."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plurum.run import Run
from plurum.serving import Server
from tests.cli.processes import plurum_command, predict


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("scans") / "of a patient whose long name no terminal of sixty columns can show"
    (folder / "later").mkdir(parents=True)
    names = [f"{index:02}.png" for index in range(18)] + ["later/1.tif", "later/2.JPG"]
    for name, pixels in zip(names, np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8), strict=True):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.triton
def test_files_that_are_not_images_are_reported(served: Server, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((scans / "00.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no image")
    done = predict(tmp_path, "--url", served.urls.grpc)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    skipped, _ = done.stderr.splitlines()
    assert skipped.endswith(f"{tmp_path}: skipped: 1 .txt")


@pytest.fixture
def broken(scans: Path, tmp_path: Path) -> Path:
    """Two valid images with an invalid one between them."""
    (tmp_path / "mixed").mkdir()
    for name, source in (("a.png", "00.png"), ("c.png", "01.png")):
        (tmp_path / "mixed" / name).write_bytes((scans / source).read_bytes())
    (tmp_path / "mixed" / "b.png").write_text("no image")
    return tmp_path / "mixed"


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_folder_becomes_a_table(served: Server, scans: Path, protocol: str) -> None:
    done = predict(scans, "--url", getattr(served.urls, protocol))
    assert done.returncode == 0
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["path", "label", "confidence", "entropy", "disagreement", "review"]
    assert len(rows) == 20
    # In a pipe, a row is one line, however long the path is.
    assert rows[0].startswith(f"{scans / '00.png'} ")
    assert rows[-1].startswith(f"{scans / 'later' / '2.JPG'} ")
    reviewed = sum(row.rstrip().endswith("review") for row in rows)
    assert done.stderr == f"20 classified, {reviewed} to review, 0 failed\n"


@pytest.mark.triton
def test_http_without_a_scheme(served: Server, scans: Path) -> None:
    done = predict(scans / "00.png", "--http", "--url", served.urls.http.removeprefix("http://"))
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


@pytest.mark.triton
def test_json_lines_and_csv_say_the_same(served: Server, scans: Path, tmp_path: Path) -> None:
    done = predict(scans, "--url", served.urls.grpc, "--json", "--out", tmp_path / "out.csv")
    assert done.returncode == 0
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [item["path"] for item in objects] == [row["path"] for row in rows]
    assert len(objects) == 20
    for item, row in zip(objects, rows, strict=True):
        assert (row["label"], row["review"]) == (item["label"], str(item["review"]).lower())
        assert float(row["confidence"]) == pytest.approx(item["confidence"], abs=1e-6)
        assert float(row[f"p_{item['label']}"]) == pytest.approx(item["confidence"], abs=1e-6)
        assert row["prediction_set"].split("|") == item["prediction_set"]
        assert row["error"] == ""


@pytest.mark.triton
def test_with_a_progress_bar_on_a_terminal_answers_still_go_to_standard_output(served: Server, scans: Path) -> None:
    screen, terminal = os.openpty()
    try:
        done = subprocess.run(
            plurum_command("predict", scans, "--url", served.urls.grpc, "--json"),
            stdout=subprocess.PIPE,
            stderr=terminal,
            check=True,
            env=os.environ | {"TERM": "xterm"},
        )
        shown = os.read(screen, 1 << 20).decode()
    finally:
        os.close(screen)
        os.close(terminal)
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()][-1] == str(scans / "later" / "2.JPG")
    assert "Predicting" in shown
    assert "20 classified" in shown


@pytest.mark.triton
def test_a_bad_image_is_named_and_the_others_are_answered(served: Server, broken: Path, tmp_path: Path) -> None:
    done = predict(broken, "--url", served.urls.grpc, "--json", "--out", tmp_path / "out.csv")
    assert done.returncode == 1
    first, second, third = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["label"]
    assert third["label"]
    assert second.keys() == {"path", "error"}
    line, summary = done.stderr.splitlines()
    assert line == f"{broken / 'b.png'}: {second['error']}"
    assert "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image" in line
    assert summary.startswith("2 classified, ")
    assert summary.endswith(", 1 failed")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["", second["error"], ""]


@pytest.mark.triton
def test_review_only_prints_images_that_need_review(served: Server, run: Run, broken: Path, tmp_path: Path) -> None:
    # The rule sends half of these images to review.
    for index, pixels in enumerate(np.array(run.pixels()[40:48])):
        Image.fromarray(pixels).save(broken / f"{index}.png")
    options = ("--url", served.urls.grpc, "--json", "--out", tmp_path / "out.csv")
    everything = [json.loads(line) for line in predict(broken, *options).stdout.splitlines()]
    wanted = [item["path"] for item in everything if item.get("review", True)]
    assert 1 < len(wanted) < len(everything)
    done = predict(broken, *options, "--review-only", "--fresh")
    assert done.returncode == 1
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == wanted
    # The file has all predictions, whatever is shown.
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(everything)
    table = predict(broken, "--url", served.urls.grpc, "--review-only").stdout.splitlines()
    assert len(table) == 1 + len(wanted)


@pytest.mark.triton
def test_an_unavailable_server_among_several_is_skipped(served: Server, scans: Path) -> None:
    done = predict(scans, "--url", "127.0.0.1:1", "--url", served.urls.grpc)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 21)


def test_a_server_that_is_away_leaves_nothing_behind(scans: Path, tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    for options in ((), ("--http",)):
        done = predict(scans, "--url", address, "--out", tmp_path / "out.csv", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert f"server responds at {address}" in done.stderr
        assert "Start one with plurum serve REPO" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_shows_examples() -> None:
    done = predict("--help", COLUMNS="120")
    assert done.returncode == 0
    assert "plurum predict scans/ --out answers.csv" in done.stdout
