"""Journal of a bulk run: predictions so far, in a hidden file from which an interrupted run resumes.

.NAME.partial     beside the output file NAME
    line 1        origin of the predictions: ensemble and format, as JSON
    other lines   [path, size, time of change, label, review, body]: the result of one image; label is null without
                  a prediction, and a later line of an image replaces an earlier one
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
from typing import Any, NamedTuple

from plurum.client.bulk.listing import Listing
from plurum.dicom_files import file_and_frame
from plurum.errors import OutputError
from plurum.files import lock_file

__all__ = ["EarlierResults", "Entry", "Journal", "Stamp", "stamp_of"]

_NOWHERE = -1
_FLUSH_S = 0.2
_quoted = json.encoder.encode_basestring_ascii


class Stamp(NamedTuple):
    """Size and modification time of a file, to detect changes cheaply; zeros if there is no file."""

    size_bytes: int
    changed_ns: int


class Entry(NamedTuple):
    """Result of one image; the label is None if there is no prediction."""

    label: str | None
    review: bool
    body: str


@dataclass
class EarlierResults:
    """Results of an earlier run.

    Attributes:
        answered: Number of images whose predictions are reused.
        changed: Number of images whose files have changed since; they are classified again.
        unlisted: Number of results for images that are no longer listed; they are ignored.
    """

    answered: int = 0
    changed: int = 0
    unlisted: int = 0


class Journal:
    """The journal of one output file, for use in a `with` block, by one process at a time.

    Args:
        path: Output file that will be written from the journal.
        listing: Images to classify.
        about: Origin of the predictions; predictions of different origins are never mixed.
        fresh: If True, discard the results of an earlier run.

    Attributes:
        found: Results of the earlier run.

    Raises:
        OutputError: another process writes the journal, its predictions have another origin, or it can't be written.
    """

    def __init__(self, path: Path, listing: Listing, about: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path.with_name(f".{path.name}.partial")
        self._listing, self._about = listing, about
        self._offsets = array("q", [_NOWHERE]) * len(listing)
        self._answered = bytearray(len(listing))
        self.found = EarlierResults()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_file(self.path)
        except OSError as error:
            raise OutputError(f"{path} can't be written: {error.strerror}") from error
        if lock is None:
            raise OutputError(
                f"{path}: expected a file that no other process writes, got one that another plurum predict writes. "
                "Wait for it, or give another file."
            )
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

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as reason:
            # Closing flushes the buffer again, which fails again on a full disk.
            raise OutputError(f"{self.path} can't be written: {reason.strerror}") from reason

    def remaining(self) -> Iterator[tuple[int, str]]:
        """Yield position and path of images without a prediction, in the order of the listing."""
        return ((place, path) for path, place in self._listing.places.items() if not self._answered[place])

    def add(self, place: int, path: str, stamp: Stamp, entry: Entry) -> None:
        """Append the result of an image.

        Raises:
            OutputError: the disk is full.
        """
        self._offsets[place] = self._end
        # Same text as `json.dumps` of the list, at ten times the speed.
        label, review = "null" if entry.label is None else _quoted(entry.label), "true" if entry.review else "false"
        self._append(f"[{_quoted(path)}, {stamp[0]}, {stamp[1]}, {label}, {review}, {_quoted(entry.body)}]")
        # Results that are lost with a killed process are computed again.
        if (now_s := time.monotonic()) - self._flushed_s > _FLUSH_S:
            self.flush()
            self._flushed_s = now_s

    def flush(self) -> None:
        """Pass the results to the operating system, so that they survive if this process is killed.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error

    def entries(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield position, path and entry of every image that has an entry, in the order of the listing."""
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
        """Remove the journal when the output file is complete."""
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
        """Read the results of an earlier run, and return the offset after its last complete line."""
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
            raise OutputError(f"{self.path} is not a journal of plurum predict. Remove it, or give --fresh.")
        ours = json.loads(json.dumps(self._about))
        if other := sorted(name for name in {*about, *ours} if about.get(name) != ours.get(name)):
            raise OutputError(
                f"{self.path}: expected predictions of the same {' and '.join(other)}, got those of another. "
                "Continue with the same server, or start over with --fresh."
            )

    def _fields(self, line: bytes) -> tuple[str, int, int, str | None]:
        """Return the fields of a line without its prediction: path, size, time of change and label."""
        try:
            path, size_bytes, changed_ns, label, review, body = json.loads(line)
            texts = isinstance(path, str) and isinstance(body, str) and (label is None or isinstance(label, str))
            if not (texts and isinstance(review, bool) and isinstance(size_bytes, int) and isinstance(changed_ns, int)):
                raise ValueError("a field has the wrong type")
        except (ValueError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{self.path} has an invalid line ({error}). Remove the file, or give --fresh."
            ) from error
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
    """Return the current stamp of a file, also for a name of one of its frames."""
    try:
        status = os.stat(file_and_frame(path)[0])  # noqa: PTH116 - a million of them
    except OSError:
        return Stamp(0, 0)
    return Stamp(status.st_size, status.st_mtime_ns)
