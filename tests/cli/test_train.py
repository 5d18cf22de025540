"""`plurum train`: its output; wrong use gives one line and exit code 2, and leaves no files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.command_line import CommandLine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of scikit-learn's digits in one folder per class."""
    path = tmp_path_factory.mktemp("folder") / "digits"
    digits = load_digits(n_class=3)
    for index, label in enumerate(digits.target[:90]):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(path / str(label) / f"{index}.png")
    return path


def test_it_trains_goes_on_and_tells_what_is_next(folder: Path, tmp_path: Path, plurum: CommandLine) -> None:
    out = tmp_path / "run"
    command = ("train", folder, "--arch", "test_byobnet", "--arch", "test_byobnet", "--out", out)
    small = ("--epochs", 1, "--image-size", 32)
    printed = plurum.said(*command, *small)
    assert "90 images of 3 classes: train 57, validation 15, test 18" in printed
    assert f"next: plurum fit {out}" in printed
    assert "test_byobnet-2" in printed
    assert printed.count("1 of 1") == 2
    report = json.loads(plurum.said(*command, *small, "--json"))
    assert report["reused"] == ["test_byobnet", "test_byobnet-2"]
    assert [member["seed"] for member in report["members"]] == [0, 1]
    assert report["members"][0]["image"]["height"] == 32
    assert "--seed: expected 0, got 3. Use" in plurum.refused(*command, *small, "--seed", 3)


@pytest.mark.parametrize(
    ("counts", "broken", "line"),
    [
        (None, False, "does not exist"),
        ({}, False, "expected a folder per class"),
        ({"CE": 4}, False, "expected at least 2 folders of classes, got only 'CE'"),
        ({"CE": 4, "LAA": 0}, False, "class 'LAA' has no image"),
        ({"CE": 4, "LAA": 1}, False, "class 'LAA' has 1 image, and none for validation and test"),
        (
            {"CE": 4, "LAA": 4},
            True,
            "1 of 8 images can't be read; repair or remove them, or leave them out with --skip-unreadable: ",
        ),
    ],
)
def test_data_that_can_not_be_learnt_from_are_one_line(
    tmp_path: Path,
    plurum: CommandLine,
    counts: dict[str, int] | None,
    broken: bool,
    line: str,
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    for name, count in (counts or {}).items():
        (data / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(data / name / f"{number}.png")
    if counts == {}:
        data.mkdir()
    if broken:
        (data / "LAA" / "1.png").write_bytes((data / "LAA" / "0.png").read_bytes()[:-30])
    options = ("--arch", "test_byobnet", "--image-size", 32, "--out", out)
    printed = plurum.refused("train", data, *options)
    assert line in printed
    assert not broken or str(data / "LAA" / "1.png") in printed
    assert [path.name for path in tmp_path.iterdir()] == ([] if counts is None else ["data"])
