"""List images from files, folders, patterns, CSV manifests and standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from plurum.dicom_files import PatientNames, frame_names, heading_from_file
from plurum.errors import DataError
from plurum.file_trees import files_below, is_image_name
from plurum.images.image_formats import IMAGE_SUFFIXES
from plurum.manifests import fetch_data, file_from_manifest, read_manifest_table
from plurum.remote_files import cached_path, is_uri

__all__ = ["STANDARD_INPUT", "Listing", "image_files", "listing_from_names"]

STANDARD_INPUT = "-"
# Limit of paths on standard input: some five million.
_MOST_BYTES = 1 << 29


@dataclass
class Listing:
    """Images in the order in which they are classified, each once; about 0.2 kB of memory per image.

    Attributes:
        places: Positions of the images, from 0, by path.
        patients: Patients' names by position, for images whose manifest states one.
        labels: Known labels by position, for images whose manifest states one.
        patient_names: Names of the patients of DICOM files whose patient no manifest states; None leaves it unknown.
    """

    places: dict[str, int] = field(default_factory=dict)
    patients: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    patient_names: PatientNames | None = None
    _slides: dict[tuple[str, bytes], str] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def add(self, path: str, patient: str = "", label: str = "") -> None:
        """Append an image, or each frame of a DICOM file, unless it is listed already.

        The files of a whole-slide image in DICOM, its levels and label, are one image: the first of them.

        Raises:
            DataError: the image is listed with another patient or label.
            SettingsError: the key of the patients' pseudonyms can't be read or made.
        """
        heading = heading_from_file(Path(path))
        if heading and heading.slide:
            path = self._slides.setdefault((str(Path(path).parent), heading.slide), path)
        for name in frame_names(path):
            self._add(name, patient or (self.patient_names.name(Path(path)) if self.patient_names else ""), label)

    def _add(self, path: str, patient: str, label: str) -> None:
        place = self.places.setdefault(path, len(self.places))
        for known, word, name in ((self.patients, patient, "patient"), (self.labels, label, "label")):
            if word and known.setdefault(place, word) != word:
                raise DataError(
                    f"{path}: expected one {name}, got {known[place]!r} and {word!r}. Correct the manifest."
                )


def listing_from_names(
    names: Iterable[str | Path], standard_input: BinaryIO | None = None, patient_names: PatientNames | None = None
) -> Listing:
    """Return the images that `names` match.

    - A folder: the images below it, in sorted order.
    - A name with `*`, `?` or `[` that is not a file: the matching images, sorted; `**` matches any folders.
    - A `.csv` file: a manifest with the column `path` and, optionally, `patient` and `label`, or the other names that
      `plurum train` accepts for these.
    - `-`: paths from standard input, one per line, or separated by NUL as `find -print0` writes them.
    - An address in a store, such as `s3://BUCKET/FOLDER`: the images there, fetched into the user's cache. A manifest,
      too, may list addresses.
    - Any other file: the file itself.

    Of a DICOM file of several frames, each frame is an image: `FILE#frame=0`.

    Images from a manifest or standard input need not exist: missing ones fail when they are classified.

    Args:
        names: Names as above.
        standard_input: Stream for `-`; None takes `-` for a file.
        patient_names: Names of the patients of DICOM files whose patient no manifest states; None leaves it unknown.

    Raises:
        DataError: a name does not exist, holds or matches no image, or is not a valid manifest.
    """
    listing = Listing(patient_names=patient_names)
    for given in names:
        name = fetch_data(str(given))
        path = Path(name)
        if name == STANDARD_INPUT and standard_input is not None:
            _add_lines(listing, standard_input)
        elif path.suffix.lower() == ".csv" and path.is_file():
            _add_manifest(listing, path)
        elif glob.has_magic(name) and not path.exists():
            _add_matches(listing, name)
        else:
            for file in files_below(path) if path.is_dir() else map(str, image_files([path])):
                listing.add(file)
    return listing


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files in `paths` and the images below its folders, each once, folders in sorted order.

    In a folder, images are files with one of `IMAGE_SUFFIXES`, in upper or lower case. Names that start with a dot are
    skipped. A file in `paths` is returned whatever its name.

    Raises:
        DataError: a path does not exist, or a folder holds no image or can't be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(map(Path, files_below(path))))
        elif path.is_file():
            found[path] = None
        else:
            raise DataError(f"{path}: expected an image or a folder of images, got neither. Correct the path.")
    return list(found)


def _add_lines(listing: Listing, file: BinaryIO) -> None:
    text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise DataError(f"standard input: expected at most {_MOST_BYTES:,} bytes of paths, got more. Split the list.")
    between = b"\0" if b"\0" in text else b"\n"
    found = False
    for line in text.split(between):
        # Lines may end with a carriage return too.
        if path := line.removesuffix(b"\r") if between == b"\n" else line:
            listing.add(os.fsdecode(path))
            found = True
    if not found:
        raise DataError("standard input: expected at least 1 path, got 0. Give one path per line.")


def _add_manifest(listing: Listing, manifest: Path) -> None:
    table = read_manifest_table(manifest, ["path"])
    rows = zip(table.lines, table.cells("path"), table.cells("patient"), table.cells("label"), strict=True)
    for line, name, patient, label in rows:
        if not name:
            raise DataError(f"{manifest}: expected a path in line {line}, got none.")
        # List a missing file too, relative to the manifest's folder: it fails when it is classified.
        missing = cached_path(name) if is_uri(name) else manifest.parent / name
        listing.add(str(file_from_manifest(manifest, name) or missing), patient, label)


def _add_matches(listing: Listing, pattern: str) -> None:
    found = sorted(filter(_is_image, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - it need not be relative
    files = _each_once([path for path in found if Path(path).is_file()])
    if not files:
        raise DataError(f"{pattern}: expected a pattern that matches images ({', '.join(IMAGE_SUFFIXES)}), got none.")
    for path in files:
        listing.add(path)


def _each_once(paths: list[str]) -> list[str]:
    """Leave out files that `**` found repeatedly through links; keep the shortest path to each folder."""
    first: dict[str, str] = {}
    for folder in sorted({path.rpartition("/")[0] for path in paths}, key=lambda name: (len(name), name)):
        first.setdefault(os.path.realpath(folder or "."), folder)
    ways = set(first.values())
    return [path for path in paths if path.rpartition("/")[0] in ways]


def _is_image(path: str) -> bool:
    return is_image_name(path.rpartition("/")[2])
