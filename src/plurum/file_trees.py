"""Walk folders of images: through links, each folder once, without what operating systems leave behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from plurum.errors import DataError
from plurum.manifests import IMAGE_SUFFIXES

__all__ = ["ImageTree", "is_image_name", "is_leftover", "skipped_text"]

# Beside hidden ones: of macOS, of a Synology, of Windows, of Linux.
_LEFTOVERS = frozenset(
    {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"}
)
_LINK = "links to folders that are read anyway"


class ImageTree:
    """The images below a folder.

    A link to a folder outside is followed once. One to a folder inside, or to one that holds this one, would give
    images twice or for ever: it is counted, not followed.

    Args:
        top: The folder.
        within: Folders that are read anyway.

    Attributes:
        skipped: How many files and links were left out so far, by their extension or by the reason.
        hidden: How many files and folders were left out as hidden, or as left behind by an operating system.
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
        """Yield the images, folder by folder in sorted order; they are named as the folder was.

        Raises:
            DataError: a folder can't be read.
        """
        places = [str(self.top)]
        while places:
            place = places.pop()
            # What `Path` would write, and takes longer for.
            before = "" if place == "." else f"{place.removeprefix('./').rstrip('/')}/"
            folders = []
            for entry in _entries(place):
                if is_leftover(entry.name):
                    self.hidden += 1
                elif _is_folder(entry):
                    if not entry.is_symlink() or self._is_new(entry.path):
                        folders.append(before + entry.name)
                elif is_image_name(entry.name):
                    yield before + entry.name
                else:
                    self.skipped[PurePath(entry.name).suffix.lower()] += 1
            places += reversed(folders)

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


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without its folders, is taken for an image where nobody named it."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or something that an operating system leaves behind."""
    return name.startswith(".") or name in _LEFTOVERS


def skipped_text(skipped: Counter[str]) -> str:
    """Return what `ImageTree.skipped` counts, in words: `12 .dcm, 3 .webp`; the most frequent first."""
    return ", ".join(f"{count:,} {what or 'without an extension'}" for what, count in skipped.most_common())


def _entries(place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{place} can't be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, say.
        return False
