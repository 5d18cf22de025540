"""Find and read images without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.file_trees import files_below
from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.manifests import file_from_manifest, read_manifest_table
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.spec import ImageSpec

__all__ = ["find_patients", "find_unlabelled_images", "iterate_pixels"]


def find_unlabelled_images(source: Path) -> tuple[Path, ...]:
    """Return the images below the folder `source`, or in the column `path` of the CSV file `source`.

    Paths in a CSV file are relative to its folder. Hidden files are left out.

    Raises:
        DataError: there is no image, a listed image is missing, or `source` is neither a folder nor a CSV file.
    """
    if source.is_dir():
        return tuple(sorted(map(Path, files_below(source))))
    if source.suffix.lower() == ".csv" and source.is_file():
        return _files_from_csv(source)
    raise DataError(f"{source} is neither a folder of images nor a .csv file with a column path")


def find_patients(source: Path, images: int) -> tuple[str, ...]:
    """Return the patient of each image that `find_unlabelled_images` finds in `source`; empty if unknown.

    Args:
        source: Folder, or CSV file whose column `patient` names them.
        images: Number of images.
    """
    return ("",) * images if source.is_dir() else tuple(read_manifest_table(source, ["path"]).cells("patient"))


def iterate_pixels(files: Sequence[Path], image: ImageSpec, batch_size: int = 64) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the images' pixels at the members' input size, in batches, uint8 `[batch, height, width, 3]`.

    Raises:
        DataError: an image is unreadable.
    """
    for start in range(0, len(files), batch_size):
        yield np.stack([_pixels(file, image) for file in files[start : start + batch_size]])


def _files_from_csv(path: Path) -> tuple[Path, ...]:
    table = read_manifest_table(path, ["path"])
    found = [file_from_manifest(path, name) if name else None for name in table.cells("path")]
    missing = [
        f"line {line} names {name or 'no path'}"
        for line, name, file in zip(table.lines, table.cells("path"), found, strict=True)
        if file is None
    ]
    if missing:
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{path} names images that do not exist: {missing[0]}{more}")
    return tuple(file for file in found if file)


def _pixels(file: Path, image: ImageSpec) -> npt.NDArray[np.uint8]:
    try:
        opened = open_image(read_regular(file, MAX_IMAGE_BYTES), window=image.window)
        return pixels_from_image(opened, **image.resizing)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    except UnreadableImageError as error:
        raise DataError(f"{file} can't be read: {error}") from error
