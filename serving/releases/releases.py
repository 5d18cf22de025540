"""Folder with the releases of a server and the name of the public one; it outlives the server.

    FOLDER/releases/TAG/     a model repository as it was exported; never changed. TAG is a hash of its content
    FOLDER/state.json        the public release, the previous one, and the one on trial
    FOLDER/order.json        a request from `plurum rollout`; the server removes it after reading it
    FOLDER/report.json       progress and outcome of the last order
    FOLDER/lock              held by the server

Write access to the folder decides what is served, so only its owner has it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from plurum.errors import OutputError, RepositoryError
from plurum.files import atomic_folder, is_locked, lock_file, sha256_of, write_text
from plurum.regular_files import read_regular
from plurum.serving.triton.settings import ReleaseTrial
from plurum.spec import Metadata

__all__ = ["ReleaseState", "Releases", "RolloutOrder", "RolloutReport", "tag_of"]

_TAG_LENGTH = 8
Kind = TypeVar("Kind", bound="Metadata")


class ReleaseState(Metadata):
    """The releases of a server.

    Attributes:
        current: Tag of the public release.
        previous: Tag of the release before it, for a rollback; None if there is none.
        trial: Release on trial; None if there is none.
    """

    current: str
    previous: str | None = None
    trial: ReleaseTrial | None = None


class RolloutOrder(Metadata):
    """Rollout that a server should perform.

    Attributes:
        number: Number that identifies the order.
        release: Tag of the release to make public. None ends a trial or, without a trial, rolls back to the previous
            release.
        percent: If given, try the release on this percentage of requests first.
        shadow: If True, only compare the release's predictions with those of the public release.
    """

    number: int
    release: str | None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    shadow: bool = False


class RolloutReport(Metadata):
    """Progress and outcome of an order.

    Attributes:
        number: Number of the order.
        lines: Completed steps, one line each.
        outcome: Outcome of the order; None while it is in progress.
    """

    number: int
    lines: tuple[str, ...] = ()
    outcome: Literal["done", "refused"] | None = None


class Releases:
    """Folder with the releases of a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None
        self._state: ReleaseState | None = None

    def add(self, repository: Path) -> str:
        """Copy a model repository into the folder, unless it is there already, and return its tag.

        Raises:
            OutputError: the folder can't be written to, or holds other files.
            RepositoryError: `repository` is not a model repository, or changed meanwhile.
        """
        tag = tag_of(repository)
        self._create()
        if not self.path(tag).is_dir():
            with atomic_folder(self.path(tag)) as hidden:
                shutil.copytree(repository, hidden, dirs_exist_ok=True)
                if tag_of(hidden) != tag:
                    raise RepositoryError(f"{repository}: changed while it was copied. Run the same command again.")
        return tag

    def path(self, tag: str) -> Path:
        """Return the path of a release."""
        return self.folder / "releases" / tag

    def lock(self) -> None:
        """Lock the folder for a server, until `unlock` or the end of this process.

        Raises:
            OutputError: another server holds the lock.
        """
        self._create()
        self._lock = lock_file(self.folder / "lock")
        if self._lock is None:
            raise OutputError(
                f"{self.folder}: expected a folder that no server uses, got one in use. "
                "Stop that server, or give another folder."
            )

    def unlock(self) -> None:
        """Release the lock when the server has stopped."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = self._state = None

    def is_served(self) -> bool:
        """Return True if a server holds the lock."""
        return is_locked(self.folder / "lock")

    def state(self) -> ReleaseState | None:
        """Return the state, or None if no release was ever public.

        Only the holder of the lock changes the state, and it keeps it in memory in case the folder disappears.
        """
        if self._lock is None:
            return _read(self.folder / "state.json", ReleaseState)
        if self._state is None:
            self._state = _read(self.folder / "state.json", ReleaseState)
        return self._state

    def write_state(self, state: ReleaseState) -> None:
        """Write the state.

        Raises:
            OutputError: the file can't be written, or the folder no longer exists.
        """
        self._check_there()
        write_text(self.folder / "state.json", state.model_dump_json(indent=2) + "\n")
        self._state = state

    def place_order(self, order: RolloutOrder) -> None:
        """Write an order for the server."""
        write_text(self.folder / "order.json", order.model_dump_json() + "\n")

    def take_order(self) -> RolloutOrder | None:
        """Return and remove the order, or return None if there is none."""
        path = self.folder / "order.json"
        try:
            return _read(path, RolloutOrder)
        finally:
            # Remove an unreadable order too, so that it is reported once.
            path.unlink(missing_ok=True)

    def read_report(self) -> RolloutReport | None:
        """Return the report of the last order, or None if there is none."""
        return _read(self.folder / "report.json", RolloutReport)

    def write_report(self, report: RolloutReport) -> None:
        """Write the report of an order.

        Raises:
            OutputError: the file can't be written, or the folder no longer exists.
        """
        self._check_there()
        write_text(self.folder / "report.json", report.model_dump_json() + "\n")

    def _check_there(self) -> None:
        # Writing would create a new folder without releases.
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder} no longer exists")

    def _create(self) -> None:
        known = {"releases", "state.json", "order.json", "report.json", "lock"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            strangers = sorted(path.name for path in self.folder.iterdir() if path.name.lstrip(".") not in known)
        except OSError as error:
            raise OutputError(f"{self.folder} can't be used as a folder of releases: {error.strerror}") from error
        # Files that are still being written start with a dot.
        strangers = [name for name in strangers if not name.startswith(".")]
        if strangers:
            raise OutputError(
                f"{self.folder}: expected a new, empty or existing folder of releases, got one that holds "
                f"{strangers[0]}. Give another folder."
            )


def tag_of(repository: Path) -> str:
    """Return the tag of a model repository, a hash of its files' names and contents.

    Raises:
        RepositoryError: `repository` is not a model repository.
    """
    if not (repository / "ensemble.json").is_file():
        raise RepositoryError(
            f"{repository}: expected a model repository with an ensemble.json. Create one with: plurum export RUN"
        )
    digest = hashlib.sha256()
    # Follow links, because `add` copies their targets.
    found = (Path(folder, name) for folder, _, names in os.walk(repository, followlinks=True) for name in names)
    for path in sorted(found):
        if path.is_file():
            digest.update(f"{path.relative_to(repository)}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()[:_TAG_LENGTH]


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        return kind.model_validate_json(read_regular(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise OutputError(f"{path} can't be read: {error}. Remove the file.") from error
