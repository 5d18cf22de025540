"""Find the images among files and folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from plurum.errors import DataError
from plurum.file_trees import ImageTree, skipped_text
from plurum.image_structure.image_formats import IMAGE_SUFFIXES

__all__ = ["files_below", "image_files"]

_LOG = logging.getLogger(__name__)


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


def files_below(folder: Path) -> Iterator[str]:
    """Yield the images below a folder in sorted order, and log which other files were skipped.

    Raises:
        DataError: the folder holds no image, or can't be read.
    """
    tree, none = ImageTree(folder), True
    for path in tree.paths():
        none = False
        yield path
    others = skipped_text(tree.skipped)
    if none:
        raise DataError(
            f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none{f'; skipped: {others}' * bool(others)}"
        )
    if others:
        _LOG.warning("%s: skipped: %s", folder, others)
