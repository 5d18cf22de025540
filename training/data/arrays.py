"""Labelled images from arrays: scikit-learn's digits, MedMNIST archives, IDX files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import DataError, needs_extra
from plurum.run import Split, Table
from plurum.training.data.labelled_images import LabelledImages, check_classes
from plurum.training.data.splits import check_splits, draw_split, stratified_splits

__all__ = ["DIGITS", "images_from_arrays", "images_from_digits", "images_from_parts"]

# Images and their labels.
Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]

# Name of scikit-learn's digits as a data source; a folder of that name is ./digits.
DIGITS = "digits"
_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def images_from_digits(seed: int) -> LabelledImages:
    """Return scikit-learn's 1,797 handwritten digits, 8 × 8 pixels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with needs_extra("training"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    splits = stratified_splits(labels, [""] * len(labels), _DIGIT_NAMES, seed)
    sources = tuple(f"{DIGITS}/{index}" for index in range(len(labels)))
    table = Table(sources, labels, ("",) * len(labels), splits)
    return images_from_arrays(DIGITS, _DIGIT_NAMES, table, [images])


def images_from_parts(
    source: Path, parts: dict[str, Arrays], split_names: dict[str, Split], seed: int | None = None
) -> LabelledImages:
    """Return the images of a data set that is already divided into splits; classes are named by their numbers.

    Args:
        source: File or folder of the data set.
        parts: Images, uint8 `[images, height, width]` or `[images, height, width, 3]`, and their labels, by the data
            set's names of the splits, training first.
        split_names: Our name of each split.
        seed: Random seed to draw validation images from the training images with; None draws none.

    Raises:
        DataError: images and labels don't match, or a class is not in every split.
    """
    for part, (images, some) in parts.items():
        if len(images) != len(some):
            raise DataError(f"{source} has {len(images):,} {part} images and {len(some):,} {part} labels")
        if images.size == 0:
            raise DataError(f"{source} has no {part} image: the shape is {list(images.shape)}")
    arrays = [images for images, _ in parts.values()]
    if len({array.shape[1:] for array in arrays}) > 1:
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise DataError(f"{source} has splits of different shapes: {shapes}")
    labels = np.concatenate([some for _, some in parts.values()]).astype(np.int64)
    highest = int(labels[: len(arrays[0])].max())
    if labels.min() < 0 or labels.max() > highest:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{source}: expected labels from 0 to {highest}, as of its training images, got {wrong}")
    classes = tuple(str(index) for index in range(highest + 1))
    check_classes(source, classes)
    splits = tuple(split_names[part] for part, (images, _) in parts.items() for _ in images)
    patients = ("",) * len(labels)
    if seed is None:
        check_splits(labels, patients, splits, classes)
    else:
        splits = draw_split(labels, patients, splits, classes, seed)
    sources = tuple(f"{source}/{part}/{index}" for part, (images, _) in parts.items() for index in range(len(images)))
    return images_from_arrays(str(source), classes, Table(sources, labels, patients, splits), arrays)


def images_from_arrays(
    name: str, classes: tuple[str, ...], table: Table, parts: list[npt.NDArray[np.uint8]]
) -> LabelledImages:
    """Return labelled images from arrays of equally large images, which are read as PNG.

    Args:
        name: Data source, as named by the user.
        classes: Class names, in the order of the labels.
        table: One row per image, over all parts.
        parts: Arrays of images, uint8 `[images, height, width]` or `[images, height, width, 3]` each.
    """
    digest = hashlib.sha256(table.labels.tobytes())
    for part in parts:
        digest.update(f"{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    first_rows = np.cumsum([0, *map(len, parts)])

    def read(index: int) -> bytes:
        part = int(np.searchsorted(first_rows, index, side="right")) - 1
        buffer = io.BytesIO()
        Image.fromarray(parts[part][index - first_rows[part]]).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    return LabelledImages(name, classes, table, digest.hexdigest(), max(parts[0].shape[1:3]), read)
