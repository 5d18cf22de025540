"""Labelled images from arrays: scikit-learn's digits, MedMNIST archives, IDX files."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import needs_extra
from plurum.run import Table
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.data.splits import stratified_splits

__all__ = ["DIGITS", "images_from_arrays", "images_from_digits"]

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
