"""Names of report files, from the names of the images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from plurum.dicom_files import file_and_frame

__all__ = ["names_of_reports"]

_SUFFIXES = (".dcm", ".dicom")


def names_of_reports(paths: Iterable[str]) -> dict[str, str]:
    """Return a file name without suffix for each image, the same for the same images in the same order.

    A name is that of the image's file without `.dcm`. A frame adds its number: `cine-frame0`. If another image has the
    name, those of its folders come first: `ward_scan`.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        file, frame = file_and_frame(path)
        mark = "" if file == path else f"-frame{frame}"
        place = Path(file).absolute()
        last = place.stem if place.suffix.lower() in _SUFFIXES else place.name
        parts = (*place.parts[1:-1], last)
        names = ("_".join(parts[-depth:]) + mark for depth in range(1, len(parts) + 1))
        # Different paths may still give the same name: a/b and a_b.
        name = next((one for one in names if one not in taken), f"{len(found)}_{last}{mark}")
        taken.add(name)
        found[path] = name
    return found
