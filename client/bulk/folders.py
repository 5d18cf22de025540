"""Which files a person means who names files and folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from plurum.errors import DataError
from plurum.file_trees import ImageTree, skipped_text
from plurum.manifests import IMAGE_SUFFIXES

__all__ = ["files_below", "image_files"]

_LOG = logging.getLogger(__name__)


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


def files_below(folder: Path) -> Iterator[str]:
    """Yield the images below a folder, in sorted order, and log what else is there and not read.

    Raises:
        DataError: it has none, or can't be read.
    """
    tree, none = ImageTree(folder), True
    for path in tree.paths():
        none = False
        yield path
    others = skipped_text(tree.skipped)
    if none:
        raise DataError(
            f"{folder} holds no image; one ends in {', '.join(IMAGE_SUFFIXES)}{f'; there are {others}' * bool(others)}"
        )
    if others:
        _LOG.warning("%s: not asked about: %s", folder, others)
