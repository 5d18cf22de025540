"""Where labelled images come from: a folder per class, a MedMNIST archive, or scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plurum.errors import DataError, needs_extra
from plurum.run import Split, Table
from plurum.training.data import LabelledImages
from plurum.training.splits import check_splits, stratified_splits

__all__ = ["DIGITS", "EXTENSIONS", "load_data"]

_LOG = logging.getLogger(__name__)

# The word that names scikit-learn's digits; a folder of that name is ./digits.
DIGITS = "digits"
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# MedMNIST's names of the splits.
_NPZ_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def load_data(
    source: str,
    seed: int = 0,
    *,
    tile_size: int | None = None,  # noqa: ARG001 - not in effect yet
    max_tiles: int = 16,  # noqa: ARG001 - not in effect yet
    skip_unreadable: bool = False,  # noqa: ARG001 - not in effect yet
) -> LabelledImages:
    """Return the labelled images that `source` names; nothing is decoded yet.

    - `digits`: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels.
    - A `.npz` of MedMNIST's format: `{train,val,test}_images`, uint8 `[images, height, width]` or
      `[images, height, width, 3]`, and `{train,val,test}_labels`, integers `[images, 1]`. Its splits are kept.
    - A folder with a folder per class: `CLASS/image.png`, or `CLASS/PATIENT/image.png` where patients are known; a
      patient's name means the same person in every class. Hidden files and other extensions are ignored.

    Args:
        source: One of these.
        seed: What the splits are drawn from, where the source has none.
        tile_size: Side of the tiles that a larger image is cut into, in pixels of the file; None leaves images whole.
        max_tiles: Of one image: those with the most tissue.
        skip_unreadable: Leave out images that can't be read instead of refusing them.

    Raises:
        DataError: nothing is there, or nothing that can be learnt from.
        MissingExtraError: scikit-learn is not installed.
    """
    if source == DIGITS:
        return _digits(seed)
    path = Path(source)
    if path.is_dir():
        return _folder(path, seed)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _npz(path)
    what = f"{source} is no image data" if path.exists() else f"there is no {source}"
    raise DataError(f"{what}: name a folder with a folder per class, a MedMNIST .npz file, or the word {DIGITS!r}")


def _digits(seed: int) -> LabelledImages:
    with needs_extra("training"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    splits = stratified_splits(labels, [""] * len(labels), _DIGIT_NAMES, seed)
    sources = tuple(f"{DIGITS}/{index}" for index in range(len(labels)))
    table = Table(sources, labels, ("",) * len(labels), splits)
    return _arrays(DIGITS, _DIGIT_NAMES, table, [images])


def _npz(path: Path) -> LabelledImages:
    try:
        # NumPy leaves a file open that it opened itself and can't read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {key: archive[key] for part in _NPZ_SPLITS for key in (f"{part}_images", f"{part}_labels")}
    except KeyError as error:
        raise DataError(
            f"{path} has no array {error.args[0].split()[0]!r}, which MedMNIST's format asks for"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise DataError(f"{path} is no NumPy archive of plain arrays: {error}") from error
    images = [_checked_images(found[f"{part}_images"], f"{path}: {part}_images") for part in _NPZ_SPLITS]
    parts = [_checked_labels(found[f"{part}_labels"], f"{path}: {part}_labels") for part in _NPZ_SPLITS]
    for part, array, some in zip(_NPZ_SPLITS, images, parts, strict=True):
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
    _check_classes(path, classes)
    splits = tuple(split for split, some in zip(_NPZ_SPLITS.values(), parts, strict=True) for _ in some)
    patients = ("",) * len(labels)
    check_splits(labels, patients, splits, classes)
    sources = tuple(
        f"{path}/{part}/{i}" for part, some in zip(_NPZ_SPLITS, parts, strict=True) for i in range(len(some))
    )
    return _arrays(str(path), classes, Table(sources, labels, patients, splits), images)


def _checked_images(array: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise DataError(f"{name} has the type {array.dtype}; uint8 is needed, 0 to 255")
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


def _arrays(name: str, classes: tuple[str, ...], table: Table, parts: list[npt.NDArray[np.uint8]]) -> LabelledImages:
    """Return labelled images from arrays of one shape; an image is read as a PNG."""
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


def _folder(path: Path, seed: int) -> LabelledImages:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no folder in it; a folder per class is needed, as in {path}/CLASS/image.png")
    files: list[tuple[Path, int]] = []
    ignored = sum(1 for entry in path.iterdir()) - len(folders)
    for label, folder in enumerate(folders):
        images, others = _images_below(folder)
        if not images:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise DataError(f"class {folder.name!r} has no image: {folder} holds no file with one of {kinds}")
        files += [(image, label) for image in images]
        ignored += others
    if ignored:
        _LOG.warning("%s: %d hidden or other files ignored", path, ignored)
    classes = tuple(folder.name for folder in folders)
    _check_classes(path, classes)
    labels = np.array([label for _, label in files], dtype=np.int64)
    patients = tuple(_patient(file.relative_to(folders[label])) for file, label in files)
    table = Table(
        tuple(str(file) for file, _ in files), labels, patients, stratified_splits(labels, patients, classes, seed)
    )
    digest = hashlib.sha256()
    for file, _ in files:
        # As make and rsync judge whether a file changed: reading all of them would take as long as decoding.
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return LabelledImages(
        str(path), classes, table, digest.hexdigest(), None, lambda index: files[index][0].read_bytes()
    )


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Return the image files below `folder`, in order, and how many others there are."""
    images: list[Path] = []
    others = 0
    for parent, inner, names in os.walk(folder):
        others += sum(name.startswith(".") for name in inner)
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or Path(name).suffix.lower() not in EXTENSIONS:
                others += 1
            elif not name.isprintable():
                # It could be written neither to a table nor to a terminal.
                raise DataError(f"{Path(parent) / ascii(name)} has a name with unprintable characters; rename it")
            else:
                images.append(Path(parent) / name)
    return sorted(images), others


def _patient(below_class: Path) -> str:
    return below_class.parts[0] if len(below_class.parts) > 1 else ""


def _check_classes(path: Path, classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise DataError(f"{path} has one class, {classes[0]!r}; at least 2 are needed")
    for name in classes:
        if not name.isprintable():
            raise DataError(f"{path} has a class called {name!a}, with unprintable characters; rename it")
