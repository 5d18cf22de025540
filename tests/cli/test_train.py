"""`plurum train`: its output; wrong use gives one line and exit code 2, and leaves no files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.command_line import CommandLine
from tests.training.data_files import write_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of scikit-learn's digits in one folder per class."""
    path = tmp_path_factory.mktemp("folder") / "digits"
    digits = load_digits(n_class=3)
    for index, label in enumerate(digits.target[:90]):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(path / str(label) / f"{index}.png")
    return path


def test_training_resumes_and_names_the_next_command(folder: Path, tmp_path: Path, plurum: CommandLine) -> None:
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


def test_unusable_data_give_one_line(tmp_path: Path, plurum: CommandLine) -> None:
    data = tmp_path / "data"
    options = ("--arch", "test_byobnet", "--image-size", 32, "--out", tmp_path / "run")
    assert "does not exist" in plurum.refused("train", data, *options)
    write_classes(data, {"CE": 4, "LAA": 4})
    broken = data / "LAA" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    line = "1 of 8 images can't be read; repair or remove them, or leave them out with --skip-unreadable: "
    assert f"{line}{broken}" in plurum.refused("train", data, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folds_need_calibration_images(folder: Path, tmp_path: Path, plurum: CommandLine) -> None:
    out = tmp_path / "run"
    command = ("train", folder, "--arch", "test_byobnet", "--image-size", 32, "--epochs", 1, "--out", out)
    assert "--folds: expected calibration images" in plurum.refused(*command, "--folds", 2)
    assert not out.exists()
    printed = plurum.said(*command, "--folds", 2, "--certification", 0.4)
    assert "scores on images of each member's own fold" in " ".join(printed.split())
    assert "test_byobnet-fold-2" in printed
