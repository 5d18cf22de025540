"""Private copies of model repositories, so that a restart does not depend on files that others can change or remove.

Each file is hashed while it is copied, so Triton loads exactly what was compared with `export.json`. Links are replaced
by their targets. Compiled Python is not copied, because Python would prefer it to the source that was compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plurum.errors import RepositoryError
from plurum.regular_files import check_regular, open_regular
from plurum.repository.listing import is_listed, model_folders
from plurum.serving.triton.leftovers import OwnedFolder

__all__ = ["Snapshot", "Snapshots"]

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
# Space that Triton itself needs in the same folder.
_SPARE_BYTES = 1 << 26
_COMPILED = "__pycache__"


@dataclass(frozen=True)
class Snapshot:
    """A copy of one repository.

    Attributes:
        path: Folder of the copy.
        repository: Repository that was copied.
        hashes: SHA-256 of each file, by its path in the repository.
        size_bytes: Total size of the files.
        took_s: Time that copying and hashing took, seconds.
    """

    path: Path
    repository: Path
    hashes: dict[str, str]
    size_bytes: int
    took_s: float
    _seen: dict[str, tuple[int, int, int]] = field(repr=False)

    def translate(self, message: str) -> str:
        """Return a message with the repository's path in place of the copy's."""
        return message.replace(str(self.path), str(self.repository))

    def difference(self) -> str | None:
        """Return a description of how the repository now differs from this copy, or None if it does not.

        A file is read again only if it was written to or replaced.
        """
        try:
            self.repository.stat()
            files = dict(_files_of(self.repository))
            told = (self._difference_of(name, files.get(name)) for name in sorted({*files, *self.hashes}))
            return next((one for one in told if one is not None), None)
        except RepositoryError as error:
            return str(error)
        except FileNotFoundError:
            return "the repository no longer exists"
        except OSError as error:
            return f"the repository can't be read: {error.strerror}"

    def _difference_of(self, name: str, file: Path | None) -> str | None:
        if name not in self.hashes or file is None:
            return f"{name} is {'gone' if file is None else 'new'}"
        signature = _signature(file)
        if signature != self._seen[name]:
            if _hash(file) != self.hashes[name]:
                return f"{name} has changed"
            self._seen[name] = signature
        return None


class Snapshots:
    """Copies of a server's releases by tag, in a private temporary folder below `TMPDIR`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: OwnedFolder | None = None
        self._taken: dict[str, Snapshot] = {}

    def take(self, repository: Path, tag: str = "") -> Snapshot:
        """Copy a repository, unless a copy for `tag` exists, and return the copy.

        Raises:
            RepositoryError: `repository` is not a model repository, holds special files, or there is no space.
        """
        if tag not in self._taken:
            if self._folder is None:
                self._folder = OwnedFolder(self._name)
            path = self._folder.path / (tag or "repository")
            try:
                self._taken[tag] = _copy(repository, path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
        return self._taken[tag]

    def has(self, tag: str) -> bool:
        """Return True if there is a copy for `tag`."""
        return tag in self._taken

    def keep(self, tags: set[str]) -> None:
        """Remove all copies except those of `tags`."""
        for tag in set(self._taken) - tags:
            shutil.rmtree(self._taken.pop(tag).path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all copies."""
        self._taken.clear()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _copy(repository: Path, path: Path) -> Snapshot:
    start = time.monotonic()
    hashes, seen = {}, {}
    try:
        files = dict(_files_of(repository))
        size = sum(check_regular(file).st_size for file in files.values())
        _check_space(repository, size)
        for name, file in files.items():
            seen[name] = _signature(file)
            hashes[name] = _hash(file, path / name)
        for model in model_folders(repository):
            # Triton requires a version folder even for models without files in it.
            for version in model.iterdir():
                if version.is_dir() and version.name != _COMPILED:
                    (path / model.name / version.name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository} can't be copied: {error.strerror or error}") from error
    took_s = time.monotonic() - start
    _log.debug("%s: %d files, %.1f MB copied in %.2f s", repository, len(files), size / 1e6, took_s)
    return Snapshot(path, repository, hashes, size, took_s, seen)


def _check_space(repository: Path, size: int) -> None:
    place = tempfile.gettempdir()
    needed, free = size + _SPARE_BYTES, shutil.disk_usage(place).free
    if free < needed:
        raise RepositoryError(
            f"TMPDIR: expected at least {needed / 1e6:.0f} MB free in {place} for a copy of {repository}, got "
            f"{free / 1e6:.0f} MB. Free some space, or set TMPDIR to a folder that has more."
        )


def _files_of(repository: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file that Triton could load, and the metadata files, each with its path in the repository."""
    models = model_folders(repository)
    for file in sorted(repository.iterdir()):
        if file.is_file() and not file.name.startswith(".") and (is_listed(file.name) or file.name == "export.json"):
            yield file.name, file
    for model in models:
        yield from _files_in(model, model.name, ())


def _files_in(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path]]:
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        raise RepositoryError(f"{folder}: expected a folder, got a link to a folder that contains it. Remove the link.")
    for part in sorted(folder.iterdir()):
        if part.is_dir():
            if part.name != _COMPILED:
                yield from _files_in(part, f"{name}/{part.name}", (*above, here))
        else:
            yield f"{name}/{part.name}", part


def _signature(file: Path) -> tuple[int, int, int]:
    about = file.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _hash(file: Path, copy: Path | None = None) -> str:
    """Return the SHA-256 of a file; write a copy meanwhile if `copy` is given."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_regular(file))
        target = None
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            target = opened.enter_context(copy.open("xb"))
        # More threads would gain little: the disk or the hash is the bottleneck.
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            if target is not None:
                target.write(block)
    return digest.hexdigest()
