"""The releases that a server has been given, and which of them is public: a folder that outlives the server.

    FOLDER/releases/TAG/     a model repository as it was exported; never changed. TAG is a hash of its content
    FOLDER/state.json        which release is public, which was before, which is on trial
    FOLDER/order.json        what `plurum rollout` asks for; taken away by the server once it has read it
    FOLDER/report.json       what has become of the last order
    FOLDER/lock              held by the server

Whoever may write into the folder decides what is served: it is its owner's alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plurum.errors import OutputError, RepositoryError
from plurum.files import is_locked, locked, sha256_of, whole_folder, write_text
from plurum.regular_files import read_regular
from plurum.serving.triton.trial import ReleaseTrial

__all__ = ["Order", "Releases", "Report", "State"]

_TAG_LENGTH = 8
Kind = TypeVar("Kind", bound="_Document")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class State(_Document):
    """Which releases there are.

    Attributes:
        current: The tag of the public one.
        previous: Of the one before, to go back to.
        trial: The one on trial.
    """

    current: str
    previous: str | None = None
    trial: ReleaseTrial | None = None


class Order(_Document):
    """What a server is asked to do.

    Attributes:
        number: Told apart by it.
        release: The tag to make public; None goes back: from a trial to the public release, else to the one before.
        percent: Try the release on this share of questions first.
        shadow: Only compare its answers with the public one's.
    """

    number: int
    release: str | None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    shadow: bool = False


class Report(_Document):
    """What has become of an order.

    Attributes:
        number: The order's.
        lines: What was done, a line each.
        outcome: None while it is under way.
    """

    number: int
    lines: tuple[str, ...] = ()
    outcome: Literal["done", "refused"] | None = None


class Releases:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None
        self._state: State | None = None

    def add(self, repository: Path) -> str:
        """Copy a model repository, unless it is here already, and return its tag.

        Raises:
            OutputError: the folder can't be written to, or holds something else.
            RepositoryError: `repository` is none.
        """
        if not (repository / "ensemble.json").is_file():
            raise RepositoryError(
                f"{repository} holds no ensemble.json; a repository that plurum export wrote is expected"
            )
        self._make()
        tag = _tag_of(repository)
        if not self.path(tag).is_dir():
            with whole_folder(self.path(tag)) as hidden:
                shutil.copytree(repository, hidden, dirs_exist_ok=True)
                if _tag_of(hidden) != tag:
                    raise RepositoryError(f"{repository}: changed while it was copied. Run the same command again.")
        return tag

    def path(self, tag: str) -> Path:
        """Return where a release is."""
        return self.folder / "releases" / tag

    def hold(self) -> None:
        """Say that a server serves from here, until `let_go` or the end of this process.

        Raises:
            OutputError: another one does.
        """
        self._make()
        self._lock = locked(self.folder / "lock")
        if self._lock is None:
            raise OutputError(f"{self.folder} is served already; end that server or name another folder")

    def let_go(self) -> None:
        """Say that the server has ended."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = self._state = None

    def is_served(self) -> bool:
        """Whether a server serves from here."""
        return is_locked(self.folder / "lock")

    def state(self) -> State | None:
        """Return what is public, or None before anything was.

        Who holds the folder is the only one who changes that, and knows it even when the folder has gone.
        """
        if self._lock is None:
            return _read(self.folder / "state.json", State)
        if self._state is None:
            self._state = _read(self.folder / "state.json", State)
        return self._state

    def keep(self, state: State) -> None:
        """Write down what is public.

        Raises:
            OutputError: it can't be written, or the folder has gone.
        """
        self._check_there()
        write_text(self.folder / "state.json", state.model_dump_json(indent=2) + "\n")
        self._state = state

    def order(self, order: Order) -> None:
        """Ask the server for something."""
        write_text(self.folder / "order.json", order.model_dump_json() + "\n")

    def take_order(self) -> Order | None:
        """Return what the server is asked for, once."""
        path = self.folder / "order.json"
        try:
            return _read(path, Order)
        finally:
            # One that can't be read is asked for once, too.
            path.unlink(missing_ok=True)

    def report(self) -> Report | None:
        """Return what has become of the last order."""
        return _read(self.folder / "report.json", Report)

    def tell(self, report: Report) -> None:
        """Say what has become of an order.

        Raises:
            OutputError: it can't be written, or the folder has gone.
        """
        self._check_there()
        write_text(self.folder / "report.json", report.model_dump_json() + "\n")

    def _check_there(self) -> None:
        # Writing would make a new one, with nothing else in it.
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder} has gone")

    def _make(self) -> None:
        known = {"releases", "state.json", "order.json", "report.json", "lock"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            strangers = sorted(path.name for path in self.folder.iterdir() if path.name.lstrip(".") not in known)
        except OSError as error:
            raise OutputError(f"{self.folder} can't be a folder of releases: {error.strerror}") from error
        # Files that are being written begin with a dot and end at random.
        strangers = [name for name in strangers if not name.startswith(".")]
        if strangers:
            raise OutputError(f"{self.folder} holds something else ({strangers[0]}); name a new or an empty folder")


def _tag_of(repository: Path) -> str:
    digest = hashlib.sha256()
    # Also what links lead to, since it is copied.
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
        raise OutputError(f"{path} can't be read: {error}; remove it") from error
