"""Export decisions as the CSV manifest that `plurum train` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from plurum.client.ui.store import ReviewItem, ReviewStore
from plurum.errors import DataError
from plurum.files import write_text

__all__ = ["COLUMNS", "csv_from_items", "write_corrections"]

# `plurum train` reads the first two columns and ignores the others.
COLUMNS = ("path", "label", "answered", "confidence", "name", "reviewer", "decided_at", "sampling_probability")


def csv_from_items(items: Iterable[ReviewItem]) -> str:
    """Return a row for each image with a decision; paths are absolute, an unknown sampling probability is empty."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for item in items:
        if item.decision is None or item.decision.label is None:
            continue
        prediction, decision = item.prediction, item.decision
        texts = (_plain(item.name), _plain(decision.reviewer), decision.decided_at)
        chosen = "" if item.sampling_probability is None else f"{item.sampling_probability:.6g}"
        writer.writerow([item.file, decision.label, prediction.label, f"{prediction.confidence:.6f}", *texts, chosen])
    return file.getvalue()


def write_corrections(store: ReviewStore, path: Path) -> int:
    """Write the CSV to `path` atomically, and return the number of images in it.

    Raises:
        DataError: the store has no decisions yet.
        OutputError: `path` can't be written.
    """
    decided = [item for item in store.items() if item.label is not None]
    if not decided:
        raise DataError(f"{store.folder} has no decisions yet. Review its images with: plurum ui")
    write_text(path, csv_from_items(decided), private=True)
    return len(decided)


def _plain(text: str) -> str:
    """Return a text that no spreadsheet reads as a formula: file names are untrusted."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
