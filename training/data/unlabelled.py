"""Find and read images without labels."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.file_trees import files_below
from plurum.files import atomic_folder
from plurum.images import UnreadableImageError, open_image, pixels_from_image
from plurum.manifests import fetch_data, file_from_manifest, read_manifest_table
from plurum.regular_files import MAX_IMAGE_BYTES, read_regular
from plurum.run import Run, UnlabelledImages, number_patients
from plurum.spec import ImageSpec

__all__ = ["digest_image", "find_unlabelled_images", "iterate_pixels", "keep_unlabelled", "read_unlabelled"]


def find_unlabelled_images(source: Path | str) -> tuple[Path, ...]:
    """Return the images below the folder `source`, or in the column `path` of the CSV file `source`.

    Paths in a CSV file are relative to its folder. Hidden files are left out. `source` may be an address in a store,
    such as `s3://BUCKET/FOLDER`.

    Raises:
        DataError: there is no image, a listed image is missing, or `source` is neither a folder nor a CSV file.
    """
    path = Path(fetch_data(str(source)))
    if path.is_dir():
        return tuple(sorted(map(Path, files_below(path))))
    if path.suffix.lower() == ".csv" and path.is_file():
        return _files_from_csv(path)
    raise DataError(f"{source} is neither a folder of images nor a .csv file with a column path")


def read_unlabelled(run: Run, source: Path | str, *, are_new: bool = False) -> UnlabelledImages:
    """Return the images of a folder, or of a CSV manifest with the column `path` and, if known, `patient`.

    Equal images of unknown patients count as those of one patient.

    Args:
        run: Run that defines the size of the images.
        source: Folder or manifest.
        are_new: If True, refuse an image of an unknown patient that equals one of the run's.

    Raises:
        DataError: an image can't be read, or is of a patient that the run has.
    """
    path = Path(fetch_data(str(source)))
    files = find_unlabelled_images(path)
    # A folder names no patients.
    patients = [""] * len(files) if path.is_dir() else read_manifest_table(path, ["path"]).cells("patient")
    if known := sorted(set(run.table().patients).intersection(patients) - {""}):
        raise DataError(
            f"--unlabelled: expected patients that the run does not have, got {len(known):,} of its patients in "
            f"{source}, such as {known[0]}. Leave them out."
        )
    pixels = np.concatenate(list(iterate_pixels(files, run.data().image)))
    digests = [digest_image(image) for image in pixels]
    own = {digest_image(image) for image in run.pixels()} if are_new else set()
    if copies := [file for file, name, key in zip(files, patients, digests, strict=True) if not name and key in own]:
        raise DataError(
            f"--unlabelled: expected images that the run does not have, got {len(copies):,} of its images in {source}, "
            f"such as {copies[0]}. Leave them out."
        )
    owners = [name or f"image {key}" for name, key in zip(patients, digests, strict=True)]
    return UnlabelledImages(pixels, number_patients(owners))


def digest_image(image: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's pixels, in hexadecimal."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def keep_unlabelled(run: Run, images: UnlabelledImages | None) -> None:
    """Write the images into the run, from which export reads them again; None removes those of a former fit."""
    if images is None:
        shutil.rmtree(run.unlabelled_folder, ignore_errors=True)
        return
    with atomic_folder(run.unlabelled_folder) as folder:
        np.save(folder / "pixels.npy", images.pixels)
        np.save(folder / "groups.npy", images.groups)


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
        opened = open_image(read_regular(file, MAX_IMAGE_BYTES), **image.decoding)
        return pixels_from_image(opened, **image.resizing)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    except UnreadableImageError as error:
        raise DataError(f"{file} can't be read: {error}") from error
