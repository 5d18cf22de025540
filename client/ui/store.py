"""Predictions that need review, and the decisions about them, in SQLite beside the images.

FOLDER/reviews.sqlite       predictions sent to review, and every decision about them
FOLDER/images/SHA256.png    the images, unchanged (or .jpg, .tif)

A decision is never changed: a later one is added, and the latest counts. Each is one transaction, which is on disk
before the page confirms it.
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
from plurum.images.image_formats import format_of

__all__ = ["Decision", "DecisionConflictError", "Progress", "ReviewItem", "ReviewStore"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL,
    name TEXT NOT NULL,
    answer TEXT NOT NULL,
    asked_for TEXT NOT NULL CHECK (asked_for IN ('ensemble', 'person')),
    answered_at TEXT NOT NULL,
    sampling_probability REAL
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
# Stores of Plurum 0.1.0 lack the column. They hold predictions that need review, which are all chosen, and images that
# people sent. Plurum 0.1.0 reads and writes stores with it, too.
_ADD_PROBABILITY = """
ALTER TABLE answers ADD COLUMN sampling_probability REAL;
UPDATE answers SET sampling_probability = 1 WHERE asked_for = 'ensemble'
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
    """Decision about an image.

    Attributes:
        number: Number of the decision, which increases with time.
        label: Class; None if the decision was withdrawn.
        decided_at: Time of the decision, ISO 8601, UTC.
        reviewer: Name of the reviewer; empty if unknown.
    """

    number: int
    label: str | None
    decided_at: str
    reviewer: str


@dataclass(frozen=True)
class ReviewItem:
    """A prediction that was sent to review.

    Attributes:
        number: Position in the order of sending, from 1.
        sha256: SHA-256 of the image.
        name: Original name of the image's file.
        file: Path of the image in the store.
        prediction: Latest prediction for the image.
        by_person: True if a person sent it to review, False if the ensemble flagged it or the server drew it.
        answered_at: Time of the prediction, ISO 8601, UTC.
        decision: Latest decision; None before the first.
        sampling_probability: Probability with which an image with such a prediction comes here: 1 if it needs review,
            the audit rate if it was drawn for audit; None if unknown, as of images that people sent.
    """

    number: int
    sha256: str
    name: str
    file: Path
    prediction: Prediction
    by_person: bool
    answered_at: str
    decision: Decision | None
    sampling_probability: float | None

    @property
    def is_audit(self) -> bool:
        """True if the image is here because the server drew it for audit."""
        return bool(self.prediction.audit) and not self.prediction.review and not self.by_person

    @property
    def label(self) -> str | None:
        """Class that a person chose; None before the first decision, or if it was withdrawn."""
        return self.decision.label if self.decision else None

    @property
    def seen(self) -> int:
        """Number of the latest decision, 0 before the first; it identifies the state that a reader has seen."""
        return self.decision.number if self.decision else 0


@dataclass(frozen=True)
class Progress:
    """Number of images with a decision, and of all images."""

    decided: int
    all: int

    @property
    def waiting(self) -> int:
        """Number of images without a decision."""
        return self.all - self.decided


class DecisionConflictError(Exception):
    """Another decision was made in the meantime.

    Attributes:
        item: Current state of the image.
    """

    def __init__(self, item: ReviewItem) -> None:
        super().__init__(item.name)
        self.item = item


class ReviewStore:
    """Folder of predictions and decisions; several threads and processes may use it.

    Args:
        folder: Folder of the store; created if necessary, and readable only by its owner.
        reviewer: Name of the reviewer, recorded with every decision.

    Raises:
        OutputError: the folder can't be created or read, or holds other files.
    """

    def __init__(self, folder: Path, reviewer: str = "") -> None:
        self.folder = folder.absolute()
        self.reviewer = reviewer
        self._file = self.folder / "reviews.sqlite"
        if not str(self.folder).isprintable():
            raise OutputError(
                f"{str(folder)!a}: expected printable characters, which a CSV can hold. Give another folder."
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._file.exists() and any(self.folder.iterdir()):
                raise OutputError(
                    f"{folder}: expected a review store or an empty folder, got other files. Give another one."
                )
            # SQLite creates its other files with the same permissions.
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            (self.folder / "images").mkdir(mode=0o700, exist_ok=True)
            _close_to_others(self.folder)
        except OSError as error:
            raise OutputError(f"{folder} can't be used: {error.strerror}") from error
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in {0, _VERSION}:
                raise OutputError(f"{folder}: expected a review store of version {_VERSION}, got version {version}.")
            if version == 0:
                _execute(database, _SCHEMA)
                database.execute(f"PRAGMA user_version = {_VERSION}")
            columns = {row["name"] for row in database.execute("PRAGMA table_info (answers)")}
            if "sampling_probability" not in columns:
                _execute(database, _ADD_PROBABILITY)

    def add(
        self,
        data: bytes,
        name: str,
        prediction: Prediction,
        *,
        by_person: bool = False,
        audit_rate: float | None = None,
    ) -> str:
        """Store an image and its prediction, replacing an earlier prediction, and return the image's SHA-256.

        An image keeps the largest probability with which one of its predictions came here.

        Args:
            data: Encoded image.
            name: Name of its file.
            prediction: Prediction for it.
            by_person: True if a person sent it to review.
            audit_rate: Probability with which the server draws images for audit; None if unknown.

        Raises:
            OutputError: the store can't be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        kind = format_of(data)
        file = f"images/{sha256}{kind.suffixes[0] if kind else '.tif'}"
        # The image comes before its row, so that every row has its image.
        if not (self.folder / file).exists():
            write_bytes(self.folder / file, data, private=True)
        chosen = 1.0 if prediction.review else audit_rate if prediction.audit else None
        sender = "person" if by_person else "ensemble"
        row = (sha256, file, name, json.dumps(prediction.to_dict()), sender, _now(), chosen)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO answers (sha256, file, name, answer, asked_for, answered_at, sampling_probability) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (sha256) DO UPDATE SET name = excluded.name, answer = excluded.answer, "
                "answered_at = excluded.answered_at, sampling_probability = "
                "max(ifnull(sampling_probability, excluded.sampling_probability), "
                "ifnull(excluded.sampling_probability, sampling_probability))",
                row,
            )
        return sha256

    def item(self, sha256: str) -> ReviewItem | None:
        """Return an image in review; None if it was not sent to review."""
        with self._transaction() as database:
            return self._find(database, sha256)

    def items(self) -> list[ReviewItem]:
        """Return all images in review, in the order of sending."""
        with self._transaction() as database:
            return [self._item(row) for row in database.execute(f"{_ITEMS} ORDER BY answers.number")]

    def progress(self) -> Progress:
        """Return the numbers of decided and of all images."""
        with self._transaction() as database:
            decided, count = database.execute(f"SELECT count(label), count(*) FROM ({_ITEMS})").fetchone()  # noqa: S608
            return Progress(decided, count)

    def decide(self, sha256: str, label: str | None, seen: int) -> Decision:
        """Record a decision about an image.

        Args:
            sha256: SHA-256 of the image.
            label: Class; None withdraws the latest decision.
            seen: Number of the latest decision that the person has seen, see `ReviewItem.seen`.

        Raises:
            DecisionConflictError: there is a later decision; nothing was written.
            KeyError: the image is not in review.
            OutputError: the store can't be written.
        """
        with self._transaction() as database:
            item = self._find(database, sha256)
            if item is None:
                raise KeyError(sha256)
            if item.seen != seen:
                raise DecisionConflictError(item)
            decision = (sha256, label, _now(), self.reviewer)
            added = database.execute(
                "INSERT INTO decisions (sha256, label, decided_at, reviewer) VALUES (?, ?, ?, ?)", decision
            )
            return Decision(added.lastrowid or 0, *decision[1:])

    def history(self, sha256: str) -> list[Decision]:
        """Return all decisions about an image, oldest first."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM decisions WHERE sha256 = ? ORDER BY number", (sha256,))
            return [Decision(row["number"], row["label"], row["decided_at"], row["reviewer"]) for row in rows]

    def delete(self, sha256: str) -> None:
        """Delete an image, its prediction and all decisions about it.

        Raises:
            OutputError: the image can't be deleted.
        """
        with self._transaction() as database:
            if (item := self._find(database, sha256)) is None:
                return
            database.execute("DELETE FROM answers WHERE sha256 = ?", (sha256,))
            try:
                item.file.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{item.file} can't be deleted: {error.strerror}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection; its writes are atomic, and on disk at the end of the block."""
        try:
            with closing(sqlite3.connect(self._file, timeout=_WAIT_S, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
                # Overwrite deleted data in the file.
                database.execute("PRAGMA secure_delete = ON")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    # On a full disk, SQLite has already rolled back.
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutputError(f"{self._file} can't be used: {error}") from error

    def _find(self, database: sqlite3.Connection, sha256: str) -> ReviewItem | None:
        row = database.execute(f"{_ITEMS} WHERE answers.sha256 = ?", (sha256,)).fetchone()
        return None if row is None else self._item(row)

    def _item(self, row: sqlite3.Row) -> ReviewItem:
        number = row["decision"]
        return ReviewItem(
            number=row["number"],
            sha256=row["sha256"],
            name=row["name"],
            file=self.folder / row["file"],
            prediction=Prediction.from_dict(json.loads(row["answer"])),
            by_person=row["asked_for"] == "person",
            answered_at=row["answered_at"],
            decision=Decision(number, row["label"], row["decided_at"], row["reviewer"]) if number else None,
            sampling_probability=row["sampling_probability"],
        )


def _execute(database: sqlite3.Connection, script: str) -> None:
    """Run statements within the current transaction, which `executescript` would end."""
    for statement in script.split(";\n"):
        database.execute(statement)


def _close_to_others(folder: Path) -> None:
    """Remove other users' access to a store of an earlier version, whose files followed the umask."""
    for path in (folder, *folder.iterdir(), *(folder / "images").iterdir()):
        # SQLite removes its -wal and -shm files when the last connection of another thread or process closes.
        with suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_uid == os.getuid() and status.st_mode & 0o077 and not path.is_symlink():
                path.chmod(status.st_mode & 0o700)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
