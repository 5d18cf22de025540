"""Which files a person means who names files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from plurum.errors import DataError
from plurum.manifests import IMAGE_SUFFIXES

__all__ = ["files_below", "image_files", "is_image_name"]


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths` and the images below its folders, each once, folders in sorted order.

    Below a folder an image is what has one of `IMAGE_SUFFIXES`, in either case, and no dot in front, as some systems
    leave beside their images. A file that is named is taken as it is.

    Raises:
        DataError: a path that isn't there, or a folder that has no image or can't be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(map(Path, files_below(path))))
        elif path.is_file():
            found[path] = None
        else:
            raise DataError(f"{path} is neither a file nor a folder; name images, or folders that hold some")
    return list(found)


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without its folders, is taken for an image where nobody named it."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def files_below(folder: Path) -> Iterator[str]:
    """Yield the images below a folder, in sorted order.

    Raises:
        DataError: it has none, or can't be read.
    """
    none = True
    for place, folders, files in os.walk(folder, onerror=_refuse):
        # In place: os.walk goes where this list says, in its order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # What `Path` would write, and takes longer for.
        before = "" if place == "." else f"{place.removeprefix('./').rstrip('/')}/"
        for name in sorted(files):
            if is_image_name(name):
                none = False
                yield before + name
    if none:
        raise DataError(f"{folder} holds no image; one ends in {', '.join(IMAGE_SUFFIXES)}")


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} can't be read: {error.strerror}") from error
