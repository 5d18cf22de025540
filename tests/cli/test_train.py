"""`plurum train`: its output; wrong use gives one line and exit code 2, and leaves no files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from plurum.cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of scikit-learn's digits in one folder per class."""
    path = tmp_path_factory.mktemp("folder") / "digits"
    digits = load_digits(n_class=3)
    for index, label in enumerate(digits.target[:90]):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(path / str(label) / f"{index}.png")
    return path


def plurum(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["plurum", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run()
    return caught.value.code if isinstance(caught.value.code, int) else 0


def test_it_trains_goes_on_and_tells_what_is_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ("train", folder, "--arch", "test_byobnet", "--arch", "test_byobnet", "--out", out)
    small = ("--epochs", 1, "--image-size", 32)
    assert plurum(monkeypatch, *command, *small) == 0
    printed = capsys.readouterr().out
    assert "90 images of 3 classes: train 57, validation 15, test 18" in printed
    assert f"next: plurum fit {out}" in printed
    assert "test_byobnet-2" in printed
    assert printed.count("1 of 1") == 2
    assert plurum(monkeypatch, *command, *small, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reused"] == ["test_byobnet", "test_byobnet-2"]
    assert [member["seed"] for member in report["members"]] == [0, 1]
    assert report["members"][0]["image"]["height"] == 32
    assert plurum(monkeypatch, *command, *small, "--seed", 3) == 2
    assert "--seed: expected 0, got 3. Use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--arch", "resnet19"), "timm has no architecture 'resnet19'; did you mean "),
        (("--arch", "vit_tiny_patch16_224", "--image-size", 32), "can't take images of 32 x 32 pixels"),
        (("--epochs", 0), "--epochs: expected a number greater than or equal to 1, got 0"),
        (("--epochs", -1, "--batch-size", 1), "--batch-size: expected a number greater than or equal to 2, got 1"),
        (("--learning-rate", "nan"), "--learning-rate: expected a number less than or equal to 10, got nan"),
        (("--precision", "fp8"), "--precision: expected 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        (("--colour", "sepia"), "--colour: expected 'rgb' or 'grey', got 'sepia'"),
        (("--image-size", 4), "--image-size: expected a number greater than or equal to 8, got 4"),
        (("--precision", "fp16"), "--precision: fp16 needs a CUDA device"),
    ],
)
def test_options_that_can_not_be_used_are_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    line: str,
) -> None:
    out = tmp_path / "run"
    arch = () if "--arch" in options else ("--arch", "test_byobnet")
    assert plurum(monkeypatch, "train", folder, *arch, *options, "--out", out) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("plurum: ")
    assert printed.err.count("\n") == 1
    assert line in printed.err
    assert not out.exists()


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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    assert plurum(monkeypatch, "train", data, *options) == 2
    printed = capsys.readouterr()
    assert line in printed.err
    assert printed.err.count("\n") == 1
    assert not broken or str(data / "LAA" / "1.png") in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ([] if counts is None else ["data"])


def test_a_folder_of_something_else_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert plurum(monkeypatch, "train", folder, "--arch", "test_byobnet", "--out", tmp_path) == 2
    assert capsys.readouterr().err == (
        f"plurum: {tmp_path} is not a run and not empty. Choose a new or empty folder.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plurum", "train", "digits", "--arch", "resnet19", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("plurum: timm has no architecture 'resnet19'; did you mean ")
