"""MedMNIST's archives: one `.npz` with images, labels and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.regular_files import open_regular
from plurum.run import Split, Table
from plurum.training.data.arrays import images_from_arrays
from plurum.training.data.labelled_images import LabelledImages, check_classes
from plurum.training.data.splits import check_splits

__all__ = ["images_from_archive"]

# The largest of MedMNIST take 13 GB.
_MAX_BYTES = 1 << 35
# MedMNIST's names of the splits.
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def images_from_archive(path: Path) -> LabelledImages:
    """Return the images of a `.npz` of MedMNIST's format, in its own splits.

    That is `{train,val,test}_images`, uint8 `[images, height, width]` or `[images, height, width, 3]`, and
    `{train,val,test}_labels`, integers `[images, 1]`.

    Raises:
        DataError: it is something else, or a class is not in every split.
    """
    found = _read(path)
    images = [_checked_images(found[f"{part}_images"], f"{path}: {part}_images") for part in _SPLITS]
    parts = [_checked_labels(found[f"{part}_labels"], f"{path}: {part}_labels") for part in _SPLITS]
    for part, array, some in zip(_SPLITS, images, parts, strict=True):
        if len(array) != len(some):
            raise DataError(f"{path} has {len(array)} {part}_images and {len(some)} {part}_labels")
    if len({array.shape[1:] for array in images}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in images)
        raise DataError(f"{path} has splits of different shapes: {shapes}")
    labels = np.concatenate(parts)
    highest = int(parts[0].max())
    if labels.min() < 0 or labels.max() > highest:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{path} has the label {wrong}; the labels of its training images go from 0 to {highest}")
    classes = tuple(str(index) for index in range(highest + 1))
    check_classes(path, classes)
    splits = tuple(split for split, some in zip(_SPLITS.values(), parts, strict=True) for _ in some)
    patients = ("",) * len(labels)
    check_splits(labels, patients, splits, classes)
    sources = tuple(f"{path}/{part}/{i}" for part, some in zip(_SPLITS, parts, strict=True) for i in range(len(some)))
    return images_from_arrays(str(path), classes, Table(sources, labels, patients, splits), images)


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        # NumPy leaves a file open that it opened itself and can't read.
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            if (size := sum(one.file_size for one in archive.zip.infolist())) > _MAX_BYTES:
                raise ValueError(f"its arrays take {size:,} bytes; at most {_MAX_BYTES:,} are read")
            return {key: archive[key] for part in _SPLITS for key in (f"{part}_images", f"{part}_labels")}
    except KeyError as error:
        raise DataError(
            f"{path} has no array {error.args[0].split()[0]!r}, which MedMNIST's format asks for"
        ) from error
    # On the bytes of a stranger, zipfile and NumPy stumble over anything.
    except Exception as error:
        raise DataError(f"{path} is no NumPy archive of plain arrays: {error}") from error


def _checked_images(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8:
        nan = " with NaN or infinite values" if array.dtype.kind == "f" and not np.isfinite(array).all() else ""
        raise DataError(f"{name} has the type {array.dtype}{nan}; uint8 is needed, 0 to 255")
    if array.ndim not in {3, 4} or (array.ndim == 4 and array.shape[3] != 3):
        raise DataError(
            f"{name} has the shape {list(array.shape)}; [images, height, width] or [images, height, width, 3] is needed"
        )
    if array.size == 0:
        raise DataError(f"{name} is empty: its shape is {list(array.shape)}")
    return array.astype(np.uint8, copy=False)


def _checked_labels(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.int64]:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} has the type {array.dtype}; integers are needed, one class per image")
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(f"{name} has {array.shape[1]} labels per image; Plurum classifies, one class per image")
    if array.ndim not in {1, 2}:
        raise DataError(f"{name} has the shape {list(array.shape)}; [images, 1] is needed")
    return array.astype(np.int64).reshape(-1)
