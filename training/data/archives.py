"""Read MedMNIST archives: one `.npz` file with images, labels and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.regular_files import open_regular
from plurum.run import Split
from plurum.training.data.arrays import images_from_parts
from plurum.training.data.labelled_images import LabelledImages

__all__ = ["images_from_archive"]

# MedMNIST's largest archives take 13 GB.
_MAX_BYTES = 1 << 35
# MedMNIST's names of the splits.
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def images_from_archive(path: Path) -> LabelledImages:
    """Return the images of a `.npz` file in MedMNIST's format, with its own splits.

    The file holds `{train,val,test}_images`, uint8 `[images, height, width]` or `[images, height, width, 3]`, and
    `{train,val,test}_labels`, integers `[images, 1]`.

    Raises:
        DataError: the file has another format, or a class is not in every split.
    """
    found = _read(path)
    parts = {
        part: (
            _check_images(found[f"{part}_images"], f"{path}: {part}_images"),
            _check_labels(found[f"{part}_labels"], f"{path}: {part}_labels"),
        )
        for part in _SPLITS
    }
    return images_from_parts(path, parts, _SPLITS)


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        # Open the file here, because NumPy does not close files that it can't read.
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            if (size := sum(one.file_size for one in archive.zip.infolist())) > _MAX_BYTES:
                raise ValueError(f"expected arrays of at most {_MAX_BYTES:,} bytes, got {size:,}")
            return {key: archive[key] for part in _SPLITS for key in (f"{part}_images", f"{part}_labels")}
    except KeyError as error:
        raise DataError(
            f"{path} has no array {error.args[0].split()[0]!r}, which MedMNIST's format requires"
        ) from error
    # Invalid files make zipfile and NumPy raise errors of any type.
    except Exception as error:
        raise DataError(f"{path} is not a NumPy archive of plain arrays: {error}") from error


def _check_images(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8:
        nan = " with NaN or infinite values" if array.dtype.kind == "f" and not np.isfinite(array).all() else ""
        raise DataError(f"{name}: expected uint8, 0 to 255, got {array.dtype}{nan}")
    if array.ndim not in {3, 4} or (array.ndim == 4 and array.shape[3] != 3):
        raise DataError(
            f"{name}: expected shape [images, height, width] or [images, height, width, 3], got {list(array.shape)}"
        )
    return array.astype(np.uint8, copy=False)


def _check_labels(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.int64]:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name}: expected integers, one class per image, got {array.dtype}")
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(f"{name}: expected 1 label per image, got {array.shape[1]}")
    if array.ndim not in {1, 2}:
        raise DataError(f"{name}: expected shape [images, 1], got {list(array.shape)}")
    return array.astype(np.int64).reshape(-1)
