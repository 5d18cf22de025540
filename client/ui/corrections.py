"""What people decided, as the CSV that `plurum train` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from plurum.client.ui.store import Item, ReviewStore
from plurum.errors import DataError
from plurum.files import write_text

__all__ = ["COLUMNS", "csv_from_items", "write_corrections"]

# The first two are what `plurum train` wants; it ignores the others.
COLUMNS = ("path", "label", "answered", "confidence", "name", "reviewer", "decided_at")


def csv_from_items(items: Iterable[Item]) -> str:
    """Return a row for each image that a person decided, confirmed or corrected; paths are absolute."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for item in items:
        if item.decision is None or item.decision.label is None:
            continue
        prediction, decision = item.prediction, item.decision
        told = (_plain(item.name), _plain(decision.reviewer), decision.decided_at)
        writer.writerow([item.file, decision.label, prediction.label, f"{prediction.confidence:.6f}", *told])
    return file.getvalue()


def write_corrections(store: ReviewStore, path: Path) -> int:
    """Write the CSV to `path`, whole or not at all, and return how many images it lists.

    Raises:
        DataError: nobody has decided anything yet.
        OutputError: `path` can't be written.
    """
    decided = [item for item in store.items() if item.label is not None]
    if not decided:
        raise DataError(f"{store.folder} holds no decision yet; look at its answers with: plurum ui")
    write_text(path, csv_from_items(decided), private=True)
    return len(decided)


def _plain(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: names of files come from anywhere."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
