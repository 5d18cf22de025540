"""Small real data in the formats that training reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["COUNTS", "digit_arrays", "idx", "save_npz", "write_classes", "write_image", "write_mnist"]

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
