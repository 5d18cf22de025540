"""Run every command of docs/data.md on data of its form, and compare the example's output with the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plurum.cli.main import run
from tests.training.conftest import digit_arrays, idx, save_npz, write_classes, write_image

PAGE = (Path(__file__).parent.parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
EXAMPLE = "plurum data scans.csv --skip-unreadable"
INSTALLED = "/usr/share/datasets/fashion-mnist"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with data of every form, named as on the page."""
    write_classes(tmp_path / "my_images", {"CE": 5, "LAA": 5})
    for number in range(6):
        write_image(tmp_path / "slides" / ("CE", "LAA")[number % 2] / f"{number}.tif", number, (600, 600))
        write_image(tmp_path / "train" / f"s{number}_0.tif", number, (600, 600))
        write_image(tmp_path / "scans" / f"{number}.png", number)
    labels = ["CE" if number % 2 else "LAA" for number in range(6)]
    lines = [f"s{number}_0,11,s{number},0,{label}" for number, label in enumerate(labels)]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,center_id,patient_id,image_num,label", *lines]))
    splits = ("train", "validation", "test")
    lines = [f"scans/{number}.png,{label},p{number},{splits[number // 2]}" for number, label in enumerate(labels)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,patient,split", *lines]))
    arrays = digit_arrays()
    save_npz(tmp_path / "pathmnist.npz", arrays)
    (tmp_path / "fashion-mnist").mkdir()
    for ours, theirs in (("train", "train"), ("t10k", "test")):
        images, targets = arrays[f"{theirs}_images"], arrays[f"{theirs}_labels"].reshape(-1)
        (tmp_path / "fashion-mnist" / f"{ours}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "fashion-mnist" / f"{ours}-labels-idx1-ubyte").write_bytes(idx(targets))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plurum(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.replace(INSTALLED, "fashion-mnist"))
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 0, command


@pytest.mark.usefixtures("folder")
def test_the_commands_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        if command != EXAMPLE:
            plurum(command, monkeypatch)
    assert Path("fashion_mnist.png").is_file()


def test_the_example_says_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(script, "docs/data.md", "exec"), {})  # noqa: S102 - our own page
    plurum(EXAMPLE, monkeypatch)
    (said,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()] == [
        line.split() for line in said.splitlines() if line.strip()
    ]
