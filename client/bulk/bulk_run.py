"""Classify many images: keep the predictions in a journal, sum them up, and write them at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Protocol

from plurum.client.bulk.formats import Format, RowSubject
from plurum.client.bulk.journal import Entry, Journal, Stamp, stamp_of
from plurum.client.bulk.listing import Listing
from plurum.client.bulk.patients import PatientPool
from plurum.client.connection.payload import AnyImage
from plurum.client.connection.predictions import Answer, Failure
from plurum.client.connection.requests import Patients
from plurum.files import atomic_file
from plurum.remote_files import display_name

__all__ = ["BulkRun", "BulkTotals", "PredictionSource"]


class PredictionSource(Protocol):
    """The part of a client that is needed here."""

    def stream(
        self, images: Iterator[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """See `EnsembleClient.stream`."""


@dataclass
class BulkTotals:
    """Counts over all images.

    Attributes:
        patients: Pool of each patient's predictions.
        answered: Number of images with a prediction.
        review: Number of predictions that need review.
        failed: Number of images without a prediction.
        labelled: Number of predictions for images with a label in the manifest.
        right: Number of predictions that match the label.
    """

    patients: PatientPool
    answered: int = 0
    review: int = 0
    failed: int = 0
    labelled: int = 0
    right: int = 0

    def add(self, subject: RowSubject, label: str | None, probabilities: list[float], *, review: bool) -> None:
        """Add one image; the label is None if there is no prediction."""
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
    def summary(self) -> str:
        """All totals in one line."""
        line = f"{self.answered} classified, {self.review} to review, {self.failed} failed"
        if self.labelled:
            line += f"; {self.right / self.labelled:.1%} of {self.labelled} labelled images are correct"
        return line


@dataclass
class BulkRun:
    """Classification of all images of a listing that have no prediction yet.

    Attributes:
        listing: Images to classify.
        totals: Counts, updated when a prediction arrives or, with a journal, when the file is written.
        journal: Journal of the predictions; None keeps none.
        form: Format of the journal's bodies; None without a journal.
        done: Number of images processed in this run.
    """

    listing: Listing
    totals: BulkTotals
    journal: Journal | None = None
    form: Format | None = None
    done: int = field(default=0, init=False)

    @property
    def left(self) -> int:
        """Number of images without a prediction at the start of this run."""
        return len(self.listing) - (self.journal.found.answered if self.journal else 0)

    def answers(self, client: PredictionSource, batch_size: int | None) -> Iterator[tuple[str, Answer]]:
        """Classify the images, and yield path and result of each, in the order of the listing.

        Raises:
            OutputError: the journal can't be written.
            ServerError: no server responds, the server fails, or it serves no ensemble.
        """
        in_progress: deque[tuple[int, str, Stamp]] = deque()
        kept = self.journal

        def send() -> Iterator[tuple[str, str]]:
            remaining = kept.remaining() if kept else enumerate(self.listing)
            for place, path in remaining:
                # Take the stamp before the file is read, so that the next run detects later changes.
                in_progress.append((place, path, stamp_of(path) if kept else Stamp(0, 0)))
                yield path, self.listing.patients.get(place, "")

        # The client reads both in step, so `tee` keeps at most one pair.
        first, second = tee(send())
        patients = (patient for _, patient in second) if self.listing.patients else None
        for answer in client.stream((path for path, _ in first), patients=patients, batch_size=batch_size):
            place, path, stamp = in_progress.popleft()
            name = display_name(path)
            label, review = (None, False) if isinstance(answer, Failure) else (answer.label, answer.review)
            if kept and self.form:
                kept.add(place, path, stamp, Entry(label, review, self.form.body(answer)))
            else:
                numbers = [] if isinstance(answer, Failure) else list(answer.probabilities.values())
                self.totals.add(self._subject(place, name), label, numbers, review=review)
            self.done += 1
            yield name, answer

    def write(self, file: Path) -> None:
        """Write all entries of the journal to `file` atomically, and sum them up.

        Raises:
            OutputError: the file can't be written.
        """
        if self.journal is None or self.form is None:
            return
        columns = [
            "path",
            *(["patient"] if self.listing.patients else []),
            *(["expected"] if self.listing.labels else []),
        ]
        with atomic_file(file, private=True) as hidden, closing(self.form.writer(hidden, columns)) as rows:
            for place, path, entry in self.journal.entries():
                subject = self._subject(place, display_name(path))
                rows.add(subject, entry.body)
                known = subject.patient and entry.label is not None
                numbers = self.form.numbers(entry.body) if known else []
                self.totals.add(subject, entry.label, numbers, review=entry.review)
        if not self.totals.failed:
            self.journal.remove()

    def _subject(self, place: int, name: str) -> RowSubject:
        return RowSubject(name, self.listing.patients.get(place, ""), self.listing.labels.get(place, ""))
