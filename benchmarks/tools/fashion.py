"""Images of Fashion-MNIST with labels, and others whose labels nobody sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from plurum.errors import DataError
from plurum.files import atomic_file, atomic_folder
from plurum.training.data.idx import array_from_idx, holds_idx

__all__ = ["write_material"]

_VALIDATION = 1_000


def write_material(fashion: Path, work: Path, labelled: int, unlabelled: int) -> tuple[Path, Path | None]:
    """Write, once, a MedMNIST file with all test images, and a folder of images without labels; return their paths.

    Training, validation and unlabelled images are different images of the official training part.

    Args:
        fashion: Folder with the files of Fashion-MNIST.
        work: Folder to write to.
        labelled: Number of training images with labels.
        unlabelled: Number of images without labels; with 0 there is no folder.

    Raises:
        DataError: the folder does not hold Fashion-MNIST, or has fewer images.
    """
    if not holds_idx(fashion):
        raise DataError(f"--fashion: expected Fashion-MNIST, got {fashion}. Run: apt install dataset-fashion-mnist")
    archive, folder = work / "labelled.npz", work / "unlabelled"
    if not archive.is_file():
        _write_archive(archive, fashion, labelled)
    if unlabelled and not folder.is_dir():
        images, _ = _read(fashion, "train")
        rows = _order(len(images))[labelled + _VALIDATION :][:unlabelled]
        if len(rows) < unlabelled:
            raise DataError(f"--unlabelled: expected at most {len(rows):,}, got {unlabelled:,}. Give fewer.")
        with atomic_folder(folder) as hidden:
            for row in rows:
                Image.fromarray(images[row]).save(hidden / f"{row}.png")
    return archive, folder if unlabelled else None


def _write_archive(path: Path, fashion: Path, labelled: int) -> None:
    images, labels = _read(fashion, "train")
    order = _order(len(images))
    arrays = dict(zip(("test_images", "test_labels"), _read(fashion, "t10k"), strict=True))
    for name, rows in (("train", order[:labelled]), ("val", order[labelled:][:_VALIDATION])):
        arrays |= {f"{name}_images": images[rows], f"{name}_labels": labels[rows]}
    with atomic_file(path) as hidden, hidden.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _order(images: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(0).permutation(images)


def _read(fashion: Path, part: str) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], ...]:
    """Return the images, uint8 `[images, 28, 28]`, and labels, `[images, 1]`, of a part."""
    images = array_from_idx(next(fashion.glob(f"{part}-images?idx3-ubyte*")), 3)
    labels = array_from_idx(next(fashion.glob(f"{part}-labels?idx1-ubyte*")), 1)
    return images, labels[:, None]
