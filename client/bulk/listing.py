"""Which images a person means who names files, folders, patterns, CSV manifests or standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from plurum.client.bulk.folders import files_below, image_files
from plurum.errors import DataError
from plurum.file_trees import is_image_name
from plurum.manifests import IMAGE_SUFFIXES, file_from_manifest, read_manifest_table

__all__ = ["STANDARD_INPUT", "Listing", "listing_from_names"]

STANDARD_INPUT = "-"
# Of paths: some five million.
_MOST_BYTES = 1 << 29


@dataclass
class Listing:
    """Images in the order in which they are asked about, each once; about 0.2 kB of memory for one.

    Attributes:
        places: Paths, each with its place from 0.
        patients: Whose image it is, by place; only where a manifest says so.
        labels: What it is known to show, by place; likewise.
    """

    places: dict[str, int] = field(default_factory=dict)
    patients: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def add(self, path: str, patient: str = "", label: str = "") -> None:
        """Put an image at the end; one that is there already stays where it is.

        Raises:
            DataError: it is there with another patient or label.
        """
        place = self.places.setdefault(path, len(self.places))
        for known, word, name in ((self.patients, patient, "patient"), (self.labels, label, "label")):
            if word and known.setdefault(place, word) != word:
                raise DataError(f"{path} is listed with the {name}s {known[place]!r} and {word!r}; give it one")


def listing_from_names(names: Iterable[str | Path], standard_input: BinaryIO | None = None) -> Listing:
    """Return the images that `names` mean.

    A folder means the images below it, in sorted order. A name with `*`, `?` or `[` that is no file means the images
    that it matches, sorted, `**` any folders. A file that ends in `.csv` is a manifest: its columns `path` and, where
    there are, `patient` and `label`, or what else `plurum train` takes for these. `-` means paths from standard input,
    one a line, or with NUL between them as `find -print0` writes them. Any other file is taken as it is.

    What a manifest or standard input names need not be there: it is asked about, and has no answer.

    Raises:
        DataError: what is named is not there, holds or matches no image, or is no manifest.
    """
    listing = Listing()
    for name in names:
        path = Path(name)
        if str(name) == STANDARD_INPUT and standard_input is not None:
            _add_lines(listing, standard_input)
        elif path.suffix.lower() == ".csv" and path.is_file():
            _add_manifest(listing, path)
        elif glob.has_magic(str(name)) and not path.exists():
            _add_matches(listing, str(name))
        else:
            for file in files_below(path) if path.is_dir() else map(str, image_files([path])):
                listing.add(file)
    return listing


def _add_lines(listing: Listing, file: BinaryIO) -> None:
    text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise DataError(f"standard input names paths of more than {_MOST_BYTES:,} bytes; give it in parts")
    between = b"\0" if b"\0" in text else b"\n"
    found = False
    for line in text.split(between):
        # Editors on other systems end lines with a carriage return, too.
        if path := line.removesuffix(b"\r") if between == b"\n" else line:
            listing.add(os.fsdecode(path))
            found = True
    if not found:
        raise DataError("standard input names no image; give one path a line")


def _add_manifest(listing: Listing, manifest: Path) -> None:
    table = read_manifest_table(manifest, ["path"])
    rows = zip(table.lines, table.cells("path"), table.cells("patient"), table.cells("label"), strict=True)
    for line, name, patient, label in rows:
        if not name:
            raise DataError(f"{manifest}: line {line} has no path")
        # One that isn't there is still asked about, and told of by the name that it has in the manifest's folder.
        listing.add(str(file_from_manifest(manifest, name) or manifest.parent / name), patient, label)


def _add_matches(listing: Listing, pattern: str) -> None:
    found = sorted(filter(_is_image, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - it need not be relative
    files = _each_once([path for path in found if Path(path).is_file()])
    if not files:
        raise DataError(f"{pattern} matches no image; one ends in {', '.join(IMAGE_SUFFIXES)}")
    for path in files:
        listing.add(path)


def _each_once(paths: list[str]) -> list[str]:
    """Leave out what `**` has found again through a link, by the shortest way to each folder."""
    first: dict[str, str] = {}
    for folder in sorted({path.rpartition("/")[0] for path in paths}, key=lambda name: (len(name), name)):
        first.setdefault(os.path.realpath(folder or "."), folder)
    ways = set(first.values())
    return [path for path in paths if path.rpartition("/")[0] in ways]


def _is_image(path: str) -> bool:
    return is_image_name(path.rpartition("/")[2])
