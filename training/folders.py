"""A folder with a folder per class."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from plurum.errors import DataError
from plurum.training.labelled_files import EXTENSIONS, LabelledFiles

__all__ = ["files_from_folder"]

_LOG = logging.getLogger(__name__)


def files_from_folder(path: Path) -> LabelledFiles:
    """Return the image files below a folder with a folder per class.

    `CLASS/image.png`, or `CLASS/PATIENT/image.png` where patients are known; a patient's name means the same person in
    every class. Hidden files and other extensions are ignored.

    Raises:
        DataError: there is no class, or one without an image.
    """
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
    return LabelledFiles(
        name=str(path),
        root=path,
        classes=classes,
        paths=tuple(file for file, _ in files),
        labels=np.array([label for _, label in files], dtype=np.int64),
        patients=tuple(_patient(file.relative_to(folders[label])) for file, label in files),
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
