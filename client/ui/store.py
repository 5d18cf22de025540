"""What people are to look at, and what they said: SQLite beside the images themselves.

FOLDER/reviews.sqlite       answers sent to review, and every decision about them
FOLDER/images/SHA256.png    the images as they were sent (or .jpg, .tif)

A decision is never changed: another is written after it, and the last counts. Each is one transaction that is on the
disk before it is said to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from plurum.client.connection.predictions import Prediction
from plurum.errors import OutputError
from plurum.files import write_bytes
from plurum.image_structure.image_formats import format_of

__all__ = ["DecidedError", "Decision", "Item", "Progress", "ReviewStore"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL,
    name TEXT NOT NULL,
    answer TEXT NOT NULL,
    asked_for TEXT NOT NULL CHECK (asked_for IN ('ensemble', 'person')),
    answered_at TEXT NOT NULL
);
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL REFERENCES answers (sha256) ON DELETE CASCADE,
    label TEXT,
    decided_at TEXT NOT NULL,
    reviewer TEXT NOT NULL
);
CREATE INDEX decisions_by_image ON decisions (sha256, number);
"""
_ITEMS = """
SELECT answers.*, decisions.number AS decision, decisions.label, decisions.decided_at, decisions.reviewer
FROM answers LEFT JOIN decisions ON decisions.number = (
    SELECT max(number) FROM decisions WHERE decisions.sha256 = answers.sha256
)
"""
_WAIT_S = 10.0


@dataclass(frozen=True)
class Decision:
    """What a person said of an image.

    Attributes:
        number: Rising with time.
        label: The class; None where a decision was taken back.
        decided_at: ISO 8601, UTC.
        reviewer: Who; empty where that was not said.
    """

    number: int
    label: str | None
    decided_at: str
    reviewer: str


@dataclass(frozen=True)
class Item:
    """An answer that was sent to review.

    Attributes:
        number: In the order of sending, from 1.
        sha256: Of the image.
        name: What its file was called where it came from.
        file: Where it lies now.
        prediction: What the ensemble answered, as of the last time it was asked.
        by_person: Whether a person sent it, and not the ensemble's own doubt.
        answered_at: ISO 8601, UTC.
        decision: The last; None before the first.
    """

    number: int
    sha256: str
    name: str
    file: Path
    prediction: Prediction
    by_person: bool
    answered_at: str
    decision: Decision | None

    @property
    def label(self) -> str | None:
        """What a person said that it is; None while nobody has, or it was taken back."""
        return self.decision.label if self.decision else None

    @property
    def seen(self) -> int:
        """The number of the last decision, 0 before the first; says what a reader knew."""
        return self.decision.number if self.decision else 0


@dataclass(frozen=True)
class Progress:
    """How many of all there are have been decided."""

    decided: int
    all: int

    @property
    def waiting(self) -> int:
        """How many have not."""
        return self.all - self.decided


class DecidedError(Exception):
    """Somebody else has decided meanwhile.

    Attributes:
        item: As it is now.
    """

    def __init__(self, item: Item) -> None:
        super().__init__(item.name)
        self.item = item


class ReviewStore:
    """A folder of answers and decisions; may be used from several threads and processes.

    Args:
        folder: Made if need be, for its owner alone.
        reviewer: Written beside every decision.

    Raises:
        OutputError: the folder can't be made or read, or holds something else.
    """

    def __init__(self, folder: Path, reviewer: str = "") -> None:
        self.folder = folder.absolute()
        self.reviewer = reviewer
        self._file = self.folder / "reviews.sqlite"
        if not str(self.folder).isprintable():
            raise OutputError(f"{str(folder)!a} has unprintable characters, which no CSV could name; choose another")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._file.exists() and any(self.folder.iterdir()):
                raise OutputError(f"{folder} holds something else than reviews; name a new or an empty folder")
            # SQLite gives the files that it makes beside this one the same permissions.
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            (self.folder / "images").mkdir(mode=0o700, exist_ok=True)
            _close_to_others(self.folder)
        except OSError as error:
            raise OutputError(f"{folder} can't be used: {error.strerror}") from error
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in {0, _VERSION}:
                raise OutputError(f"{folder} is of another Plurum: version {version}, {_VERSION} was expected")
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")

    def add(self, data: bytes, name: str, prediction: Prediction, *, by_person: bool = False) -> str:
        """Keep an image and its answer, and return its SHA-256; one that is there gets the new answer.

        Raises:
            OutputError: it can't be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        kind = format_of(data)
        file = f"images/{sha256}{kind.suffixes[0] if kind else '.tif'}"
        # Before its row, so that no row is ever without its image.
        if not (self.folder / file).exists():
            write_bytes(self.folder / file, data, private=True)
        row = (sha256, file, name, json.dumps(prediction.to_dict()), "person" if by_person else "ensemble", _now())
        with self._transaction() as database:
            database.execute(
                "INSERT INTO answers (sha256, file, name, answer, asked_for, answered_at) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (sha256) DO UPDATE SET name = excluded.name, answer = excluded.answer, "
                "answered_at = excluded.answered_at",
                row,
            )
        return sha256

    def item(self, sha256: str) -> Item | None:
        """Return what is known of an image, if it was sent to review."""
        with self._transaction() as database:
            return self._found(database, sha256)

    def items(self) -> list[Item]:
        """Return all there are, in the order of sending."""
        with self._transaction() as database:
            return [self._item(row) for row in database.execute(f"{_ITEMS} ORDER BY answers.number")]

    def progress(self) -> Progress:
        """Return how far people are."""
        with self._transaction() as database:
            decided, count = database.execute(f"SELECT count(label), count(*) FROM ({_ITEMS})").fetchone()  # noqa: S608
            return Progress(decided, count)

    def decide(self, sha256: str, label: str | None, seen: int) -> Decision:
        """Write down what a person says of an image; None takes back what was said.

        Args:
            sha256: Of the image.
            label: The class.
            seen: The number of the last decision that the person knew of, see `Item.seen`.

        Raises:
            DecidedError: there is a later one; nothing was written.
            KeyError: there is no such image.
            OutputError: it can't be written.
        """
        with self._transaction() as database:
            item = self._found(database, sha256)
            if item is None:
                raise KeyError(sha256)
            if item.seen != seen:
                raise DecidedError(item)
            decision = (sha256, label, _now(), self.reviewer)
            added = database.execute(
                "INSERT INTO decisions (sha256, label, decided_at, reviewer) VALUES (?, ?, ?, ?)", decision
            )
            return Decision(added.lastrowid or 0, *decision[1:])

    def history(self, sha256: str) -> list[Decision]:
        """Return every decision about an image, the first first."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM decisions WHERE sha256 = ? ORDER BY number", (sha256,))
            return [Decision(row["number"], row["label"], row["decided_at"], row["reviewer"]) for row in rows]

    def delete(self, sha256: str) -> None:
        """Forget an image, its answer and all decisions about it.

        Raises:
            OutputError: the file can't be removed.
        """
        with self._transaction() as database:
            item = self._found(database, sha256)
            database.execute("DELETE FROM answers WHERE sha256 = ?", (sha256,))
            try:
                if item:
                    item.file.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{sha256} can't be removed: {error.strerror}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Give a connection whose writes are all done, or none, and on the disk, when the block has ended."""
        try:
            with closing(sqlite3.connect(self._file, timeout=_WAIT_S, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
                # What is deleted shall not be found in the file.
                database.execute("PRAGMA secure_delete = ON")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    # Where the disk is full SQLite has done so already.
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutputError(f"{self._file} can't be used: {error}") from error

    def _found(self, database: sqlite3.Connection, sha256: str) -> Item | None:
        row = database.execute(f"{_ITEMS} WHERE answers.sha256 = ?", (sha256,)).fetchone()
        return None if row is None else self._item(row)

    def _item(self, row: sqlite3.Row) -> Item:
        number = row["decision"]
        return Item(
            number=row["number"],
            sha256=row["sha256"],
            name=row["name"],
            file=self.folder / row["file"],
            prediction=Prediction.from_dict(json.loads(row["answer"])),
            by_person=row["asked_for"] == "person",
            answered_at=row["answered_at"],
            decision=Decision(number, row["label"], row["decided_at"], row["reviewer"]) if number else None,
        )


def _close_to_others(folder: Path) -> None:
    """Close a store of an earlier version, whose files followed the umask, to other users of the machine."""
    for path in (folder, *folder.iterdir(), *(folder / "images").iterdir()):
        # SQLite removes its -wal and -shm files when the last connection of another thread or process closes.
        with suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_uid == os.getuid() and status.st_mode & 0o077 and not path.is_symlink():
                path.chmod(status.st_mode & 0o700)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
