"""Run every command of docs/data.md on data of its form, and compare the example's output with the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import Terminal, blocks, commands
from tests.training.data_files import digit_arrays, save_npz, write_classes, write_image, write_mnist

EXAMPLE = "plurum data scans.csv --skip-unreadable"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write data of every form, named as on the page."""
    write_classes(tmp_path / "my_images", {"CE": 5, "LAA": 5})
    for number in range(6):
        write_image(tmp_path / "slides" / ("CE", "LAA")[number % 2] / f"{number}.tif", number, (600, 600))
        write_image(tmp_path / "train" / f"s{number}_0.tif", number, (600, 600))
        write_image(tmp_path / "scans" / f"{number}.png", number)
        values = np.random.default_rng(number).integers(0, 4096, (32, 32)).astype(np.uint16)
        path = tmp_path / "x_rays" / ("CE", "LAA")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    labels = ["CE" if number % 2 else "LAA" for number in range(6)]
    lines = [f"s{number}_0,11,s{number},0,{label}" for number, label in enumerate(labels)]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,center_id,patient_id,image_num,label", *lines]))
    splits = ("train", "validation", "test")
    lines = [f"scans/{number}.png,{label},p{number},{splits[number // 2]}" for number, label in enumerate(labels)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,patient,split", *lines]))
    arrays = digit_arrays()
    save_npz(tmp_path / "pathmnist.npz", arrays)
    write_mnist(tmp_path / "fashion-mnist", arrays)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_commands_run(terminal: Terminal) -> None:
    assert len(commands("data.md")) == 9
    for command in commands("data.md"):
        if command != EXAMPLE:
            terminal.run(command, {"/usr/share/datasets/fashion-mnist": "fashion-mnist"})
    assert Path("fashion_mnist.png").is_file()


def test_the_example_says_what_the_page_says(terminal: Terminal) -> None:
    (script,) = blocks("data.md", "python")
    exec(compile(script, "docs/data.md", "exec"), {})  # noqa: S102 - our own page
    said = next(block for block in blocks("data.md", "text") if "LAA" in block)
    printed = terminal.run(EXAMPLE)
    assert [line.split() for line in printed.splitlines() if line.strip()] == [
        line.split() for line in said.splitlines() if line.strip()
    ]
