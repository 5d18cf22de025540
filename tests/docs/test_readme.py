"""Run the demo and every command of the README, except those that need what this machine lacks."""

from __future__ import annotations

import base64
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from plurum.spec import read_ensemble
from tests.cli.command_line import CommandLine
from tests.docs.pages import ROOT, Terminal, blocks, commands, run_python, text_of
from tests.training.data_files import save_npz

COMMANDS = commands("../README.md")
# `make test` runs this test; `make demo` installs and then runs `plurum demo`.
MAKE = ["make demo", "make test"]
NEEDS_A_GPU = [command for command in COMMANDS if command.startswith("docker run --gpus")]
# Architectures and epochs of the commands that take minutes.
SMALLER = {
    "resnet18": "test_resnet",
    "mobilenetv3_small_100": "test_byobnet",
    "regnetx_002": "test_efficientnet",
    "resnet10t": "test_resnet",
    "--epochs 5": "--epochs 1",
    "--epochs 2": "--epochs 1",
}

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]


def test_the_commands_are_those_that_are_run_here() -> None:
    of_plurum = [command for command in COMMANDS if command.startswith("plurum ")]
    assert sorted(COMMANDS) == sorted([*MAKE, *NEEDS_A_GPU, *of_plurum])
    text_before = text_of("../README.md").split(NEEDS_A_GPU[0])[0].rsplit("\n\n", 2)[-2]
    assert "needs a GPU" in text_before
    for target in ("demo", "test", "lint"):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@dataclass(frozen=True)
class Demo:
    """Result of `plurum demo` in an empty folder.

    Attributes:
        folder: Its working directory.
        output: What it printed.
        took_s: How long it took, seconds.
        cpu_s: How long processors were busy with it, seconds.
    """

    folder: Path
    output: str
    took_s: float
    cpu_s: float

    def again(self) -> Demo:
        """Run the demo again in the same folder."""
        return run_demo(self.folder)


def run_demo(folder: Path) -> Demo:
    """Run the demo in `folder`, as a user does."""
    start, used = time.monotonic(), _children_s()
    ended = subprocess.run(
        [sys.executable, "-m", "plurum", "demo"],
        cwd=folder,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return Demo(folder, ended.stdout, time.monotonic() - start, _children_s() - used)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Result of the demo, run once."""
    return run_demo(tmp_path_factory.mktemp("demo"))


def test_the_demo_prints_its_scores(demo: Demo) -> None:
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
    assert len(before) == 7
    again = demo.again()
    assert files_of(demo.folder / "runs" / "demo") == before
    assert again.took_s < demo.took_s / 2
    accuracies = r"accuracy of the served labels (\d\.\d+)"
    assert re.findall(accuracies, again.output) == re.findall(accuracies, demo.output)


def test_a_folder_that_holds_something_else_is_left_alone(plurum: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not a run and not empty" in plurum.refused("demo", "--out", tmp_path, "--fresh")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def folder(tmp_path: Path, demo: Demo) -> Path:
    """Return a working directory with the demo's runs and images: PNGs by class, and a file in MedMNIST's format."""
    folder = tmp_path
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)
    for index in np.flatnonzero(digits.target < 3)[:180]:
        path = folder / "my_images" / f"class_{digits.target[index]}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).resize((28, 28)).save(path)
    colour = np.stack([np.kron(image, np.ones((4, 4), np.uint8))[2:30, 2:30] for image in images[:400]])
    rgb = np.repeat(colour[..., None], 3, axis=3)
    labels = digits.target[:400, None].astype(np.uint8)
    parts = {"train": slice(0, 240), "val": slice(240, 320), "test": slice(320, 400)}
    arrays = {f"{part}_images": rgb[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    save_npz(folder / "pathmnist.npz", arrays)
    Image.fromarray(rgb[0]).save(folder / "image.jpg")
    shutil.copytree(demo.folder / "runs", folder / "runs")
    return folder


def test_the_commands_run_in_their_order(terminal: Terminal, folder: Path) -> None:
    for command in COMMANDS:
        if command.startswith("plurum "):
            terminal.run(command, SMALLER)
    rows = (folder / "answers.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((folder / "runs" / "demo" / "held_out").rglob("*.png")))
    for run, images, count in (("mine", "my_images", 180), ("pathmnist", "image.jpg", 1)):
        terminal.run(f"plurum serve runs/{run}/model_repository")
        assert len(terminal.run(f"plurum predict {images} --json").splitlines()) == count


def test_the_python_example_runs(terminal: Terminal, folder: Path) -> None:
    (example,) = blocks("../README.md", "python")
    terminal.run("plurum serve runs/demo/model_repository")
    assert run_python(example.replace("EnsembleClient()", f'EnsembleClient("{terminal.grpc}")'), folder).strip()
