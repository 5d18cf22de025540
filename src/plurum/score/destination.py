"""The folder that a job writes to: a file per part, and what is needed to resume. Local, or an fsspec address.

    DEST/part-000000.parquet ...   predictions, a row per image, in the order of the source
    DEST/_plan/plan.json           parts, and what their predictions depend on; see `plan.py`
    DEST/_plan/images.parquet      list of the images, unless the source is Parquet files of images

A file appears with its whole content or not at all, so that a part that is there is complete.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plurum.errors import OutputError
from plurum.files import atomic_file, check_folder, lock_file
from plurum.remote_files import storage_errors
from plurum.score.reading import file_system, is_address

__all__ = ["COUNTS", "Destination", "PartCounts", "part_name"]

# Key of the counts in a part's metadata.
COUNTS = b"plurum"
_PART = re.compile(r"part-\d{6,}\.parquet")
_LEFT = re.compile(r"\.part-\d{6,}\.parquet\..+")
_PLAN = "_plan"


@dataclass(frozen=True)
class PartCounts:
    """Counts over the images of one part, or of several.

    Attributes:
        images: Number of images.
        review: Number of predictions that need review.
        failed: Number of images without a prediction.
        labelled: Number of predictions for images with a known label.
        correct: Number of predictions that match it.
    """

    images: int = 0
    review: int = 0
    failed: int = 0
    labelled: int = 0
    correct: int = 0

    def __add__(self, other: PartCounts) -> PartCounts:
        """Return the sums."""
        return PartCounts(*(one + two for one, two in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """Return the counts in the order of the attributes."""
        return tuple(asdict(self).values())

    def to_json(self) -> bytes:
        """Return the counts as they are kept in a part."""
        return json.dumps(asdict(self)).encode()


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"part-{number:06}.parquet"


class Destination:
    """A folder of results; it may be missing.

    Args:
        location: Local folder or address.

    Attributes:
        location: Local folder, absolute, or address.

    Raises:
        OutputError: the local folder can't be written to.
        SettingsError: fsspec can't open the address.
    """

    def __init__(self, location: str) -> None:
        self._local = None if is_address(location) else Path(location).absolute()
        self.location = location if self._local is None else str(self._local)
        self.system, self.root = file_system(self.location)
        if self._local is not None:
            check_folder(self._local, "the predictions")

    def path(self, name: str) -> str:
        """Return the path of a file for `system`."""
        return f"{self.root.rstrip('/')}/{name}"

    def parts(self) -> list[str]:
        """Return the names of the parts that are there, sorted."""
        return sorted(name for name in self._names() if _PART.fullmatch(name))

    def counts(self, name: str) -> PartCounts | None:
        """Return the counts of a part; None if the file is not one."""
        from pyarrow import ArrowInvalid, parquet

        with self._errors():
            try:
                with self.system.open(self.path(name), "rb") as file:
                    metadata = parquet.read_metadata(file)
                return PartCounts(**json.loads(metadata.metadata[COUNTS]))
            except (ArrowInvalid, KeyError, TypeError, ValueError, FileNotFoundError):
                return None

    def read_plan(self) -> dict[str, Any] | None:
        """Return the plan; None without one.

        Raises:
            OutputError: it can't be read.
        """
        with self._errors():
            try:
                with self.system.open(self.path(f"{_PLAN}/plan.json"), "rb") as file:
                    plan: dict[str, Any] = json.loads(file.read())
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise OutputError(f"{self.location}: its plan can't be read. Start again with --fresh.") from error
        return plan

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan."""
        with self.writing(f"{_PLAN}/plan.json") as path:
            path.write_text(json.dumps(plan), encoding="utf-8")

    @property
    def listing(self) -> str:
        """Path or address of the list of images."""
        return f"{self.location.rstrip('/')}/{_PLAN}/images.parquet"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write the file `name` to; it appears if the block succeeds.

        Raises:
            OutputError: it can't be written.
        """
        if self._local is not None:
            with atomic_file(self._local / name, private=True) as hidden:
                yield hidden
            return
        with tempfile.TemporaryDirectory(prefix="plurum_score_") as folder:
            path = Path(folder, "file")
            yield path
            try:
                self.system.put_file(str(path), self.path(name))
            # Each file system has errors of its own.
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise OutputError(f"{self.location}: {name} can't be written ({reason}).") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other jobs from the local folder, and remove what a killed job has left unfinished.

        Raises:
            OutputError: another job writes to it.
        """
        if self._local is None:
            yield
            return
        folder = self._local / _PLAN
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / "lock")
        if lock is None:
            raise OutputError(f"{self.location}: another job writes to it. Wait for its end, or name another folder.")
        try:
            for name in self._names():
                if _LEFT.fullmatch(name):
                    (self._local / name).unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def clear(self) -> None:
        """Remove parts and plan."""
        # Without its plan, no part counts.
        for name in (f"{_PLAN}/plan.json", *self.parts(), f"{_PLAN}/images.parquet"):
            with self._errors(), suppress(FileNotFoundError):
                self.system.rm_file(self.path(name))

    def _names(self) -> list[str]:
        self.system.invalidate_cache()
        with self._errors():
            try:
                return [path.rstrip("/").rpartition("/")[2] for path in self.system.ls(self.root, detail=False)]
            except FileNotFoundError:
                return []

    def _errors(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of a store into one line."""
        return nullcontext() if self._local is not None else storage_errors(self.location)
