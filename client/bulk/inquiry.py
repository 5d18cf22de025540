"""Asking about many images: what is kept of the answers, added up, and written in the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plurum.client.bulk.formats import Format, Subject
from plurum.client.bulk.journal import Entry, Journal, Stamp, stamp_of
from plurum.client.bulk.listing import Listing
from plurum.client.bulk.patients import PatientPool
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Answer, Failure
from plurum.files import atomic_file

__all__ = ["Inquiry", "Totals"]


class _Streams(Protocol):
    """What of a client is needed here."""

    def stream(self, images: Iterator[AnyImage], *, batch_size: int | None = None) -> Iterator[Answer]:
        """See `EnsembleClient.stream`."""


@dataclass
class Totals:
    """What has become of all images.

    Attributes:
        patients: Adds up the answers to each patient's images.
        answered: Images with an answer.
        review: Those of them that a person should look at.
        failed: Images without an answer.
        labelled: Those with an answer of which a manifest says what they show.
        right: Those of them that were answered so.
    """

    patients: PatientPool
    answered: int = 0
    review: int = 0
    failed: int = 0
    labelled: int = 0
    right: int = 0

    def add(self, subject: Subject, label: str | None, probabilities: list[float], *, review: bool) -> None:
        """Add one image; its label is None where it has no answer."""
        self.patients.add(subject.patient, label, probabilities, review=review)
        if label is None:
            self.failed += 1
            return
        self.answered += 1
        self.review += review
        if subject.expected:
            self.labelled += 1
            self.right += label == subject.expected

    @property
    def words(self) -> str:
        """All of it in one line."""
        line = f"{self.answered} answered, {self.review} to review, {self.failed} failed"
        if self.labelled:
            line += f"; {self.right / self.labelled:.1%} of {self.labelled} labelled ones are labelled so"
        return line


@dataclass
class Inquiry:
    """Asks about every image of a listing that has no answer yet.

    Attributes:
        listing: The images.
        totals: Added up when an answer comes or, where there is a journal, when the file is written.
        journal: Keeps the answers.
        form: How it keeps them.
        done: How many were asked about so far, this time.
    """

    listing: Listing
    totals: Totals
    journal: Journal | None = None
    form: Format | None = None
    done: int = field(default=0, init=False)

    @property
    def left(self) -> int:
        """How many there were to ask about when this began."""
        return len(self.listing) - (self.journal.found.answered if self.journal else 0)

    def answers(self, client: _Streams, batch_size: int | None) -> Iterator[tuple[str, Answer]]:
        """Ask, and yield path and answer of each image, in the order of the listing.

        Raises:
            OutputError: the journal can't be written.
            ServerError: no server answers (any more), it fails, or it serves no ensemble.
        """
        under_way: deque[tuple[int, str, Stamp]] = deque()
        kept = self.journal

        def asked() -> Iterator[str]:
            remaining = kept.remaining() if kept else enumerate(self.listing)
            for place, path in remaining:
                # Before it is read: what changes later is asked about again by the next run.
                under_way.append((place, path, stamp_of(path) if kept else Stamp(0, 0)))
                yield path

        for answer in client.stream(asked(), batch_size=batch_size):
            place, path, stamp = under_way.popleft()
            label, review = (None, False) if isinstance(answer, Failure) else (answer.label, answer.review)
            if kept and self.form:
                kept.add(place, path, stamp, Entry(label, review, self.form.body(answer)))
            else:
                numbers = [] if isinstance(answer, Failure) else list(answer.probabilities.values())
                self.totals.add(self._subject(place, path), label, numbers, review=review)
            self.done += 1
            yield path, answer

    def write(self, file: Path) -> None:
        """Write all answers of the journal to `file`, whole or not at all, and add them up.

        Raises:
            OutputError: it can't be written.
        """
        if self.journal is None or self.form is None:
            return
        columns = [
            "path",
            *(["patient"] if self.listing.patients else []),
            *(["expected"] if self.listing.labels else []),
        ]
        with atomic_file(file, private=True) as hidden:
            rows = self.form.writer(hidden, columns)
            try:
                for place, path, entry in self.journal.entries():
                    subject = self._subject(place, path)
                    rows.add(subject, entry.body)
                    known = subject.patient and entry.label is not None
                    numbers = self.form.numbers(entry.body) if known else []
                    self.totals.add(subject, entry.label, numbers, review=entry.review)
            finally:
                rows.close()
        if not self.totals.failed:
            self.journal.remove()

    def _subject(self, place: int, path: str) -> Subject:
        return Subject(path, self.listing.patients.get(place, ""), self.listing.labels.get(place, ""))
