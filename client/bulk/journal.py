"""What has been answered so far, in a hidden file that outlives whoever writes it.

.NAME.partial     beside the file NAME that is to come
    line 1        what the answers are of: the ensemble and the format, as JSON
    each more     [path, size, time of change, label, review, body]: the answer of one image; label is null where
                  it has none, and a later line about an image takes the place of an earlier one
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from plurum.client.bulk.listing import Listing
from plurum.errors import OutputError
from plurum.files import lock_file

__all__ = ["Entry", "Found", "Journal", "Stamp", "stamp_of"]

_NOWHERE = -1
_FLUSH_S = 0.2
_quoted = json.encoder.encode_basestring_ascii


class Stamp(NamedTuple):
    """What tells cheaply whether a file has changed; zeros where there is none."""

    size_bytes: int
    changed_ns: int


class Entry(NamedTuple):
    """What became of one image; the label is None where it has no answer."""

    label: str | None
    review: bool
    body: str


@dataclass
class Found:
    """What an earlier run has left.

    Attributes:
        answered: Images whose answers count.
        changed: Images whose files have changed since: they are asked about again.
        unlisted: Answers about images that are listed no more: they are left out.
    """

    answered: int = 0
    changed: int = 0
    unlisted: int = 0


class Journal:
    """The journal of one file to come; to be used in a `with` block, by one process at a time.

    Args:
        path: The file to come.
        listing: What is asked about.
        about: What the answers are of; those of another are not mixed with these.
        fresh: Throw away what an earlier run has left.

    Attributes:
        found: What it has left.

    Raises:
        OutputError: somebody else writes it, it holds answers of something else, or it can't be written.
    """

    def __init__(self, path: Path, listing: Listing, about: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path.with_name(f".{path.name}.partial")
        self._listing, self._about = listing, about
        self._offsets = array("q", [_NOWHERE]) * len(listing)
        self._answered = bytearray(len(listing))
        self.found = Found()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_file(self.path)
        except OSError as error:
            raise OutputError(f"{path} can't be written: {error.strerror}") from error
        if lock is None:
            raise OutputError(f"{path} is being written by another plurum predict; wait for it, or name another file")
        self._file = os.fdopen(lock, "r+b")
        self._flushed_s = 0.0
        try:
            self._end = 0 if fresh else self._read()
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if not self._end:
                self._append(json.dumps(self._about))
                self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as reason:
            # What is in its buffer is written once more, and lost again where the disk is full.
            raise OutputError(f"{self.path} can't be written: {reason.strerror}") from reason

    def remaining(self) -> Iterator[tuple[int, str]]:
        """Yield what has no answer yet, place and path, in the order of the listing."""
        return ((place, path) for path, place in self._listing.places.items() if not self._answered[place])

    def add(self, place: int, path: str, stamp: Stamp, entry: Entry) -> None:
        """Note what became of an image.

        Raises:
            OutputError: the disk is full.
        """
        self._offsets[place] = self._end
        # Ten times as fast as `json.dumps`, of which this is what lists of these become.
        label, review = "null" if entry.label is None else _quoted(entry.label), "true" if entry.review else "false"
        self._append(f"[{_quoted(path)}, {stamp[0]}, {stamp[1]}, {label}, {review}, {_quoted(entry.body)}]")
        # What a kill takes away is asked about again.
        if (now_s := time.monotonic()) - self._flushed_s > _FLUSH_S:
            self.flush()
            self._flushed_s = now_s

    def flush(self) -> None:
        """Hand what was noted to the system, which keeps it when this process is killed.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error

    def entries(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield place, path and entry of every image that has one, in the order of the listing."""
        self.flush()
        with self.path.open("rb") as file:
            at = 0
            for path, place in self._listing.places.items():
                if (offset := self._offsets[place]) == _NOWHERE:
                    continue
                if offset != at:
                    file.seek(offset)
                line = file.readline()
                at = offset + len(line)
                yield place, path, Entry(*json.loads(line)[3:])

    def remove(self) -> None:
        """Take it away: the file that it was for is there."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _append(self, text: str) -> None:
        line = text.encode("ascii") + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error
        self._end += len(line)

    def _read(self) -> int:
        """Take in what an earlier run has left, and return where its last whole line ends."""
        with self.path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n"):
                return 0
            self._compare(head)
            end = len(head)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._take(end, self._fields(line))
                end += len(line)
        self.found.answered = sum(self._answered)
        return end

    def _compare(self, head: bytes) -> None:
        try:
            about = json.loads(head)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise OutputError(f"{self.path} is no journal of plurum predict; remove it, or give --fresh")
        ours = json.loads(json.dumps(self._about))
        if other := sorted(name for name in {*about, *ours} if about.get(name) != ours.get(name)):
            raise OutputError(
                f"{self.path} holds answers that these would not go with, of another {' and '.join(other)}; "
                "ask the server that gave them for the rest, or begin anew with --fresh"
            )

    def _fields(self, line: bytes) -> tuple[str, int, int, str | None]:
        """Return what a line says of an image, but for the answer.

        Raises:
            OutputError: it says nothing of one.
        """
        try:
            path, size_bytes, changed_ns, label, review, body = json.loads(line)
            texts = isinstance(path, str) and isinstance(body, str) and (label is None or isinstance(label, str))
            if not (texts and isinstance(review, bool) and isinstance(size_bytes, int) and isinstance(changed_ns, int)):
                raise ValueError("a field is of another type")
        except (ValueError, TypeError, RecursionError) as error:
            raise OutputError(f"{self.path} has a broken line ({error}); remove it, or give --fresh") from error
        return path, size_bytes, changed_ns, label

    def _take(self, offset: int, fields: tuple[str, int, int, str | None]) -> None:
        path, size_bytes, changed_ns, label = fields
        place = self._listing.places.get(path)
        if place is None:
            self.found.unlisted += 1
            return
        self._offsets[place] = offset
        self._answered[place] = label is not None
        if label is not None and stamp_of(path) != (size_bytes, changed_ns):
            self._answered[place] = False
            self.found.changed += 1


def stamp_of(path: str) -> Stamp:
    """Return the stamp of a file as it is now."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a million of them
    except OSError:
        return Stamp(0, 0)
    return Stamp(status.st_size, status.st_mtime_ns)
