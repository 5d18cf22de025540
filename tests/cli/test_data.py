"""`plurum data`: reports, warnings and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from plurum.training.data.report import DataReport
from tests.cli.command_line import CommandLine
from tests.training.data_files import write_classes, write_image

LEAK = "1 image in more than one split, which inflates every score"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """12 images of two classes with splits; the first training image is also in the test split."""
    rows = []
    for number in range(12):
        write_image(tmp_path / f"{number}.png", number)
        split = ("train", "validation", "test")[number // 2 % 3]
        rows.append(f"{number}.png,{'CE' if number % 2 else 'LAA'},p{number},{split}")
    with Image.open(tmp_path / "0.png") as image:
        image.save(tmp_path / "4.png", compress_level=0)
    path = tmp_path / "images.csv"
    path.write_text("\n".join(["path,label,patient,split", *rows]) + "\n")
    return path


def test_the_output_is_a_table_and_a_few_lines(manifest: Path, plurum: CommandLine) -> None:
    lines = plurum.said("data", manifest).splitlines()
    assert [line.split() for line in lines if line.split()[:1] in (["CE"], ["LAA"], ["all"])] == [
        ["CE", "2", "(2)", "2", "(2)", "2", "(2)"],
        ["LAA", "2", "(2)", "2", "(2)", "2", "(2)"],
        ["all", "4", "(4)", "4", "(4)", "4", "(4)"],
    ]
    assert "12 images of 2 classes: train 4, validation 4, test 4" in lines
    assert lines[-1] == f"{LEAK}: {manifest.parent}/0.png (train) = {manifest.parent}/4.png (test)"


def test_json_is_the_report(manifest: Path, plurum: CommandLine) -> None:
    report = DataReport.model_validate_json(plurum.said("data", manifest, "--json"))
    assert report.counts["CE"]["train"].patients == 2
    assert [item.split for item in report.across_splits[0]] == ["train", "test"]


def test_a_patient_in_two_splits_is_refused_and_named(manifest: Path, plurum: CommandLine) -> None:
    manifest.write_text(manifest.read_text().replace("p11,", "p1,"))
    assert "patient 'p1' is in train and test" in plurum.refused("data", manifest)


def test_unreadable_images_are_refused_after_the_report_or_left_out(tmp_path: Path, plurum: CommandLine) -> None:
    write_classes(tmp_path, {"CE": 5, "LAA": 5})
    (tmp_path / "CE" / "2.png").write_bytes(b"no image")
    code, out, err = plurum.ended("data", tmp_path, "--json")
    assert code == 2
    assert err.startswith("plurum: 1 of 10 images can't be read; ")
    assert json.loads(out)["unreadable"][0]["source"] == f"{tmp_path}/CE/2.png"
    assert f"1 image that can't be read: {tmp_path}/CE/2.png" in plurum.said("data", tmp_path, "--skip-unreadable")


def test_tiles_are_counted(tmp_path: Path, plurum: CommandLine) -> None:
    for number in range(6):
        write_image(tmp_path / "AB"[number % 2] / f"{number}.png", number, (40, 20))
    assert "12 images of 2 classes" in plurum.said("data", tmp_path, "--tile-size", "20")
    assert "6 images of 2 classes" in plurum.said("data", tmp_path, "--tile-size", "20", "--max-tiles", "1")
    assert "width 20, height 20 pixels" in plurum.said("data", tmp_path, "--tile-size", "20")


def test_the_seed_draws_the_splits_and_the_plot_is_written(tmp_path: Path, plurum: CommandLine) -> None:
    write_classes(tmp_path / "data", {"CE": 5, "LAA": 5})
    # The same image twice is a leak only if the two are in different splits.
    with Image.open(tmp_path / "data" / "CE" / "0.png") as image:
        image.save(tmp_path / "data" / "CE" / "9.png")
    words = [plurum.said("data", tmp_path / "data", "--json", "--seed", seed) for seed in (0, 0, 1, 2, 3)]
    assert words[0] == words[1]
    assert len(set(words)) > 1
    plurum.said("data", tmp_path / "data", "--plot", tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as picture:
        assert picture.format == "PNG"
    assert "expected a file, got the folder" in plurum.refused("data", tmp_path / "data", "--plot", tmp_path)


def test_folders_taken_as_splits_and_files_not_read_are_said(tmp_path: Path, plurum: CommandLine) -> None:
    for number, name in enumerate(("train", "valid", "test")):
        for label in range(2):
            for image in range(2):
                write_image(tmp_path / name / ("CE", "LAA")[label] / f"{image}.png", 4 * number + 2 * label + image)
    (tmp_path / "train" / "CE" / "scan.nii").write_bytes(b"")
    lines = plurum.said("data", tmp_path).splitlines()
    assert lines[-2:] == [
        "the folders train, valid and test are taken as splits, and the folders in them as classes",
        "not read: 1 .nii (NIfTI is out of scope: save each slice as DICOM, or as PNG or TIFF of 16 bits)",
    ]
    assert [line.split() for line in lines if line.split()[:1] == ["CE"]] == [["CE", "2", "2", "2"]]
    assert json.loads(plurum.said("data", tmp_path, "--json"))["notes"] == lines[-2:]
