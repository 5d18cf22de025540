"""Answers as rows: for people, for spreadsheets, for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from plurum.client.predictions import Answer, Failure
from plurum.files import whole_file

__all__ = ["CsvReport", "csv_report", "json_line", "table_from_answers"]

_COLUMNS = ("path", "label", "confidence", "review", "entropy", "disagreement", "prediction_set")


class CsvReport:
    """A CSV file with one row per image; see `csv_report`."""

    def __init__(self, path: Path, classes: Iterable[str]) -> None:
        # Names that are no UTF-8 are written as the bytes that they are.
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        columns = [*_COLUMNS, *(f"p_{name}" for name in classes), "error"]
        self._rows = csv.DictWriter(self._file, columns, restval="")
        self._rows.writeheader()

    def add(self, path: Path, answer: Answer) -> None:
        """Write the row of one image; six decimals, of which 32-bit numbers hold no more."""
        if isinstance(answer, Failure):
            self._rows.writerow({"path": path, "error": answer.reason})
            return
        row: dict[str, object] = {
            "path": path,
            "label": answer.label,
            "confidence": f"{answer.confidence:.6f}",
            "review": str(answer.review).lower(),
            "entropy": f"{answer.entropy:.6f}",
            "disagreement": f"{answer.disagreement:.6f}",
            "prediction_set": "|".join(answer.prediction_set),
        }
        self._rows.writerow(row | {f"p_{name}": f"{value:.6f}" for name, value in answer.probabilities.items()})

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


@contextmanager
def csv_report(path: Path, classes: Iterable[str]) -> Iterator[CsvReport]:
    """Open a CSV file that appears at `path` when the block ends well, and not at all otherwise.

    Columns: path, label, confidence, review (true or false), entropy, disagreement, prediction_set (classes with `|`
    between them), one `p_CLASS` per class, error (empty for an answer; alone beside path for a failure).

    Raises:
        OutputError: `path` can't be written.
    """
    with whole_file(path) as hidden:
        report = CsvReport(hidden, classes)
        try:
            yield report
        finally:
            report.close()


def json_line(path: Path, answer: Answer) -> str:
    """Return one image's answer as a JSON object in one line; one that failed has `path` and `error` alone."""
    return json.dumps({"path": str(path)} | answer.to_dict())


def table_from_answers(rows: Iterable[tuple[Path, Answer]]) -> Table:
    """Return a table for people, one row per image; what needs a person's look is marked."""
    table = Table("path", "label", "confidence", "entropy", "disagreement", "review", box=None, pad_edge=False)
    for column in table.columns[2:5]:
        column.justify = "right"
    for path, answer in rows:
        # A file name may hold bytes that no terminal shows, and square brackets that Rich would read as markup.
        name = Text(str(path).encode("utf-8", "replace").decode("utf-8"))
        if isinstance(answer, Failure):
            table.add_row(name, Text("no answer", style="red"))
            continue
        numbers = (f"{number:.3f}" for number in (answer.confidence, answer.entropy, answer.disagreement))
        table.add_row(name, Text(answer.label), *numbers, Text("review", style="yellow") if answer.review else "")
    return table
