"""Find the images among files and folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from plurum.errors import DataError
from plurum.file_trees import files_below

__all__ = ["image_files"]


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
