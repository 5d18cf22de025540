"""Walk folders of images: follow links, visit each folder once, skip hidden and system files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from plurum.dicom_files import heading_from_file
from plurum.errors import DataError
from plurum.images.image_formats import IMAGE_SUFFIXES
from plurum.images.nifti import NIFTI_SUFFIXES, NIFTI_TEXT

__all__ = ["ImageTree", "files_below", "is_image_name", "is_leftover", "skipped_text", "suffix_of"]

_LOG = logging.getLogger(__name__)

# Files and folders that macOS, Synology, Windows and Linux leave behind.
_LEFTOVERS = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "desktop.ini",
        "DICOMDIR",
    }
)
_LINK = "links to folders that are read anyway"


class ImageTree:
    """Images in a folder and its subfolders.

    A link to a folder outside is followed once. A link to a folder inside, or to a parent of this one, would list
    images twice or without end; it is counted, not followed.

    Args:
        top: The folder.
        within: Folders that are read separately, so that links to them are not followed.

    Attributes:
        skipped: Number of skipped files and links so far, by extension or reason.
        hidden: Number of skipped hidden and system files and folders so far.
    """

    def __init__(self, top: Path, *within: Path) -> None:
        self.top = top
        self.skipped: Counter[str] = Counter()
        self.hidden = 0
        self._read: set[PurePath] = set()
        self._above: set[PurePath] = set()
        for folder in (top, *within):
            self._note(PurePath(os.path.realpath(folder)))

    def paths(self) -> Iterator[str]:
        """Yield the paths of images in sorted order, folder by folder, starting with `top` as given.

        Raises:
            DataError: a folder can't be read.
        """
        pending = [str(self.top)]
        while pending:
            current = pending.pop()
            # The same text as `Path` would give, but faster.
            prefix = "" if current == "." else f"{current.removeprefix('./').rstrip('/')}/"
            folders = []
            for entry in _entries(current):
                if is_leftover(entry.name):
                    self.hidden += 1
                elif _is_folder(entry):
                    if not entry.is_symlink() or self._is_new(entry.path):
                        folders.append(prefix + entry.name)
                elif is_image_name(entry.name) or _is_dicom(entry):
                    yield prefix + entry.name
                else:
                    self.skipped[suffix_of(entry.name)] += 1
            pending += reversed(folders)

    def _is_new(self, link: str) -> bool:
        real = PurePath(os.path.realpath(link))
        if real in self._above or not self._read.isdisjoint((real, *real.parents)):
            self.skipped[_LINK] += 1
            return False
        self._note(real)
        return True

    def _note(self, real: PurePath) -> None:
        self._read.add(real)
        self._above.update(real.parents)


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


def is_image_name(name: str) -> bool:
    """Return True if a file name, without folders, is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_leftover(name: str) -> bool:
    """Return True if a file or folder name is hidden or that of a system file."""
    return name.startswith(".") or name in _LEFTOVERS


def suffix_of(name: str) -> str:
    """Return the extension of a file name in small letters: that of a NIfTI file may have two dots."""
    return next((one for one in NIFTI_SUFFIXES if name.lower().endswith(one)), PurePath(name).suffix.lower())


def skipped_text(skipped: Counter[str]) -> str:
    """Return `ImageTree.skipped` as text, the most frequent first: `12 .txt, 3 .heic`."""
    text = ", ".join(f"{count:,} {what or 'without an extension'}" for what, count in skipped.most_common())
    return f"{text} ({NIFTI_TEXT})" if any(skipped[suffix] for suffix in NIFTI_SUFFIXES) else text


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}") from error


def _is_dicom(entry: os.DirEntry[str]) -> bool:
    """Return True for DICOM files without an extension, or named by a UID, as archives write them."""
    suffix = PurePath(entry.name).suffix[1:]
    return (not suffix or suffix.isdigit()) and heading_from_file(Path(entry.path)) is not None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # Such as a link to itself.
        return False
