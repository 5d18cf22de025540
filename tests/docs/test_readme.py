"""Run every command of the README, except those that need what this machine lacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from tests.conftest import Demo
from tests.training.conftest import save_npz

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines() if line
]
# `make test` runs this test; `make demo` installs and then runs `plurum demo`, as test_demo.py does.
MAKE = ["make demo", "make test"]
NEEDS_A_GPU = [command for command in COMMANDS if command.startswith("docker run --gpus")]
BENCHMARK = "python -m plurum.benchmarks.claims.throughput"
# Architectures and epochs of the commands that take minutes.
SMALLER = {
    "resnet18": "test_resnet",
    "mobilenetv3_small_100": "test_byobnet",
    "--epochs 5": "--epochs 1",
}
PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]


def test_the_commands_are_those_that_are_run_here() -> None:
    of_plurum = [command for command in COMMANDS if command.startswith("plurum ")]
    assert sorted(COMMANDS) == sorted([*MAKE, *NEEDS_A_GPU, *of_plurum])
    assert f"\n{BENCHMARK}\n" in (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    text_before = README.split(NEEDS_A_GPU[0])[0].rsplit("\n\n", 2)[-2]
    assert "needs a GPU" in text_before
    for target in ("demo", "test", "lint"):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo: Demo) -> Path:
    """Return a working directory with a user's images: PNGs by class, and a file in MedMNIST's format."""
    folder = tmp_path_factory.mktemp("readme")
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


@contextmanager
def serving(command: str, folder: Path) -> Iterator[str]:
    """Run a `plurum serve` of the README on free ports and yield its gRPC address."""
    words = [sys.executable, "-m", *command.split(), *PORTS]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if found := re.search(r"gRPC\W+(127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail(f"{command} printed no gRPC address")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    assert server.returncode == 0


def plurum(command: str, folder: Path, *options: str) -> str:
    words = [sys.executable, "-m", *command.split(), *options]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


def test_the_commands_run_in_their_order(folder: Path) -> None:
    address = ""
    with ExitStack() as terminal:
        for command in (command for command in COMMANDS if command.startswith("plurum ")):
            for large, small in SMALLER.items():
                command = command.replace(large, small)  # noqa: PLW2901 - step by step
            if command.startswith("plurum serve"):
                terminal.close()
                address = terminal.enter_context(serving(command, folder))
            elif command.startswith("plurum predict"):
                plurum(command, folder, "--url", address)
            else:
                plurum(command, folder)
    rows = (folder / "answers.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((folder / "runs" / "demo" / "held_out").rglob("*.png")))


def test_both_of_ones_own_runs_are_served_and_answer(folder: Path) -> None:
    for run, images in (("mine", "my_images"), ("pathmnist", "image.jpg")):
        with serving(f"plurum serve runs/{run}/model_repository", folder) as address:
            answers = plurum(f"plurum predict {images} --json", folder, "--url", address)
            assert len(answers.splitlines()) == (180 if run == "mine" else 1)


def test_the_python_example_runs(folder: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    with serving("plurum serve runs/demo/model_repository", folder) as address:
        script = example.replace("EnsembleClient()", f"EnsembleClient({address!r})")
        environment = os.environ | {"PYTHONWARNINGS": "error"}
        said = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    assert said.stdout.strip()


def test_the_benchmark_runs(folder: Path) -> None:
    """Run the benchmark briefly with one small member: the figures in docs/measuring.md took minutes."""
    small = ["--arch", "resnet10t", "--size", "32", "--rounds", "1", "--seconds", "0.2"]
    words = [sys.executable, *BENCHMARK.split()[1:], *small]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["ratio"] > 0
