"""Two tasks of small stained images, and images that belong to neither.

Everything comes from data that packages ship: scikit-learn's digits and photographs, and Fashion-MNIST from Debian's
package `dataset-fashion-mnist`. Greys become colours as a stain's light absorption does (Beer–Lambert), the same in
both tasks, so that colours don't tell them apart.

Legend: images are uint8 `[images, 32, 32, 3]`, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import DataError
from plurum.files import atomic_file
from plurum.predictions.arrays import Ints
from plurum.training.data.idx import array_from_idx, holds_idx

__all__ = [
    "CHOOSING",
    "FAR",
    "NEAR",
    "Images",
    "Task",
    "TaskName",
    "make_kinds",
    "read_tasks",
    "stain",
    "write_archive",
]

TaskName = Literal["digits", "fashion"]
Images = npt.NDArray[np.uint8]

SIZE = 32
# Kinds of outliers. Each second one chose the method.
FAR = ("other data", "photographs", "noise", "constant", "inverted")
NEAR = ("crop", "rotation", "other stain")
CHOOSING = tuple((*FAR, *NEAR)[1::2])

_PARTS: dict[TaskName, dict[str, int]] = {
    "digits": {"train": 700, "val": 250, "calibration": 350, "test": 497},
    "fashion": {"train": 6000, "val": 500, "calibration": 1000, "test": 500},
}
# Absorption of red, green and blue (Ruifrok and Johnston 2001).
_HAEMATOXYLIN, _DAB = (0.65, 0.70, 0.29), (0.27, 0.57, 0.78)
_DENSITY = 1.6
_SPREAD = 0.2


@dataclass(frozen=True)
class Task:
    """Images of one task by part: train, val, calibration and test.

    Attributes:
        greys: Grey images before staining, uint8 `[images, height, width]`, by part.
        labels: Classes, `[images]`, by part.
    """

    greys: dict[str, Images]
    labels: dict[str, Ints]


def read_tasks(fashion: Path, seed: int, share: float = 1.0) -> dict[TaskName, Task]:
    """Return the images of both tasks, drawn with a seed.

    Args:
        fashion: Folder with Fashion-MNIST.
        seed: Random seed.
        share: Fraction of each part's images to draw, above 0 to 1.

    Raises:
        DataError: the folder does not hold Fashion-MNIST.
    """
    from sklearn.datasets import load_digits

    if not holds_idx(fashion):
        raise DataError(f"--fashion: expected Fashion-MNIST, got {fashion}. Run: apt install dataset-fashion-mnist")
    clothes, kinds = (
        array_from_idx(next(fashion.glob(f"t10k-{name}-ubyte*")), dimensions)
        for name, dimensions in (("images?idx3", 3), ("labels?idx1", 1))
    )
    digits = load_digits()
    greys = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return {
        "digits": _draw(greys, digits.target, "digits", seed, share),
        "fashion": _draw(clothes, kinds, "fashion", seed, share),
    }


def stain(greys: Images, rng: np.random.Generator, absorption: tuple[float, float, float] = _HAEMATOXYLIN) -> Images:
    """Return grey images in colour, at the tasks' size; the stain's strength varies between images."""
    sized = np.stack(
        [np.asarray(Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for grey in greys]
    )
    strength = _DENSITY * rng.uniform(1 - _SPREAD, 1 + _SPREAD, (len(greys), 1, 1, 1))
    density = sized[..., None] / 255 * strength * np.asarray(absorption)
    coloured: Images = np.rint(255 * np.exp(-density - 0.05)).astype(np.uint8)
    return coloured


def make_kinds(task: Task, other: Task, seed: int) -> dict[str, Images]:
    """Return images of each kind: `test`, which belong to the task, and the outliers."""
    rng = np.random.default_rng([seed, 1])
    greys = task.greys["test"]
    number = len(greys)
    test = stain(greys, rng)
    return {
        "test": test,
        "other data": stain(other.greys["test"][:number], rng),
        "photographs": _photographs(number, rng),
        "noise": rng.integers(0, 256, test.shape, dtype=np.uint8),
        "constant": np.broadcast_to(rng.integers(0, 256, (number, 1, 1, 3), dtype=np.uint8), test.shape).copy(),
        "inverted": 255 - test,
        "crop": _each(test, lambda image: _crop(image, rng)),
        "rotation": _each(test, lambda image: _rotate(image, rng)),
        "other stain": stain(greys, rng, _DAB),
    }


def write_archive(task: Task, path: Path, seed: int) -> None:
    """Write training, validation and calibration images as a MedMNIST archive; calibration is its test part."""
    rng = np.random.default_rng([seed, 2])
    arrays: dict[str, Any] = {}
    for part, name in (("train", "train"), ("val", "val"), ("calibration", "test")):
        arrays[f"{name}_images"] = stain(task.greys[part], rng)
        arrays[f"{name}_labels"] = task.labels[part][:, None].astype(np.uint8)
    with atomic_file(path) as hidden, hidden.open("wb") as file:
        np.savez(file, **arrays)


def _draw(greys: Images, labels: npt.NDArray[Any], name: TaskName, seed: int, share: float) -> Task:
    order = np.random.default_rng(seed).permutation(len(labels))
    ends = np.cumsum([math.ceil(share * number) for number in _PARTS[name].values()])
    rows = dict(zip(_PARTS[name], np.split(order[: ends[-1]], ends[:-1]), strict=True))
    return Task(
        {part: greys[row] for part, row in rows.items()},
        {part: labels[row].astype(np.int64) for part, row in rows.items()},
    )


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    return np.stack([np.asarray(change(Image.fromarray(image)), dtype=np.uint8) for image in images])


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a part of 45 to 65 % of each side, enlarged."""
    side = int(SIZE * rng.uniform(0.45, 0.65))
    left, top = rng.integers(0, SIZE - side + 1, 2).tolist()
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image turned by 45 to 135 degrees to either side."""
    angle = rng.uniform(45, 135) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))


def _photographs(number: int, rng: np.random.Generator) -> Images:
    """Return parts of scikit-learn's two photographs, 64 to 256 pixels a side, reduced."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    found = []
    for index in range(number):
        photograph = photographs[index % 2]
        side = int(rng.integers(64, 257))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
        part = Image.fromarray(photograph[top : top + side, left : left + side])
        found.append(np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return np.stack(found)
