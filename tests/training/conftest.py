"""Fixtures with small real data, and runs trained on it."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from plurum.run import Run
from plurum.training import TrainSettings, train_run
from tests.conftest import build_once

ARCHS = ("test_byobnet", "test_resnet")
SETTINGS = TrainSettings(archs=ARCHS, epochs=4, batch_size=16, learning_rate=5e-3, precision="fp32")
# Images of the digits 0 to 3.
COUNTS = {"train": 160, "val": 80, "test": 80}


def save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as MedMNIST publishes them."""
    np.savez(path, **arrays)


def digit_arrays() -> dict[str, npt.NDArray[np.uint8]]:
    """Return arrays of a MedMNIST archive with some of scikit-learn's digits."""
    digits = load_digits(n_class=4)
    images, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.uint8)
    arrays, start = {}, 0
    for part, count in COUNTS.items():
        arrays[f"{part}_images"] = images[start : start + count]
        arrays[f"{part}_labels"] = labels[start : start + count, None]
        start += count
    return arrays


def idx(array: npt.NDArray[np.uint8], kind: int = 8) -> bytes:
    """Return an array in the format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, arrays: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Write the training and test images of such arrays in the format of MNIST's files."""
    folder.mkdir()
    for ours, theirs in (("train", "train"), ("t10k", "test")):
        (folder / f"{ours}-images-idx3-ubyte").write_bytes(idx(arrays[f"{theirs}_images"]))
        (folder / f"{ours}-labels-idx1-ubyte").write_bytes(idx(arrays[f"{theirs}_labels"].reshape(-1)))


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(folder: Path, counts: dict[str, int], extension: str = "png") -> Path:
    """Write `CLASS/NUMBER.png` images of noise."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write_image(folder / name / f"{number}.{extension}", 1000 * label + number)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: such small steps gain nothing from more, and waiting is slow on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a MedMNIST archive shared by all tests, read-only."""
    # One file for all processes: the run below remembers when it was changed.
    return build_once(tmp_path_factory, "digitmnist.npz", lambda out: save_npz(out, digit_arrays()))


@pytest.fixture(scope="session")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two members shared by all tests, read-only."""
    return Run(build_once(tmp_path_factory, "trained", lambda out: train_run(str(archive), SETTINGS, out)))


@pytest.fixture(scope="session")
def spoilt(trained: Run, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with a third member, stopped after one epoch at a too high learning rate."""
    folder = tmp_path_factory.mktemp("spoilt")
    settings = TrainSettings(archs=("test_efficientnet",), epochs=1, batch_size=16, learning_rate=0.1, precision="fp32")
    train_run(str(archive), settings, folder / "other")
    shutil.copytree(trained.path, folder / "run")
    member = Run(folder / "other").member_folder("test_efficientnet")
    shutil.copytree(member, folder / "run" / "members" / "test_efficientnet")
    return Run(folder / "run")


@pytest.fixture
def unfitted(trained: Run, tmp_path: Path) -> Run:
    """Return a copy of the finished run for one test, not fitted."""
    shutil.copytree(trained.path, tmp_path / "two members!")
    return Run(tmp_path / "two members!")
