"""Answers for people, for spreadsheets, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from plurum.client.bulk.formats import Format, RowWriter, Subject, format_from_path
from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Answer, Failure
from plurum.files import atomic_file

__all__ = [
    "AnswersReport",
    "answers_report",
    "json_line",
    "patients_report",
    "table_from_answers",
    "table_from_patients",
]


class AnswersReport:
    """A file with one row per image; see `answers_report`."""

    def __init__(self, form: Format, rows: RowWriter) -> None:
        self._form, self._rows = form, rows

    def add(self, path: str | Path, answer: Answer) -> None:
        """Write the row of one image."""
        self._rows.add(Subject(str(path)), self._form.body(answer))


@contextmanager
def answers_report(path: Path, classes: Sequence[str]) -> Iterator[AnswersReport]:
    """Open a file of answers that appears at `path` when the block ends well, and not at all otherwise.

    Its suffix says what it is: `.csv`, `.jsonl` or `.parquet`. Columns of CSV and Parquet: path, label, confidence,
    review (true or false), entropy, disagreement, prediction_set (classes, in CSV with `|` between them), one `p_CLASS`
    per class, error (empty for an answer; alone beside path for a failure). JSON lines are those of `json_line`.

    Raises:
        MissingExtraError: pyarrow is needed and not installed.
        OutputError: `path` can't be written.
        SettingsError: another suffix.
    """
    form = format_from_path(path, classes)
    with atomic_file(path, private=True) as hidden:
        rows = form.writer(hidden, ("path",))
        try:
            yield AnswersReport(form, rows)
        finally:
            rows.close()


def patients_report(path: Path, answers: Sequence[PatientAnswer], classes: Sequence[str]) -> None:
    """Write one row per patient to `path`, whole or not at all, as its suffix says: .csv, .jsonl or .parquet.

    Columns: patient, label, confidence, images, review and failed (numbers of images), one `p_CLASS` per class; JSON
    lines have `probabilities` instead.

    Raises:
        MissingExtraError: pyarrow is needed and not installed.
        OutputError: `path` can't be written.
        SettingsError: another suffix.
    """
    form = format_from_path(path, classes)
    with atomic_file(path, private=True) as hidden:
        form.write_patients(hidden, answers)


def json_line(path: str | Path, answer: Answer) -> str:
    """Return one image's answer as a JSON object in one line; one that failed has `path` and `error` alone."""
    return json.dumps({"path": str(path)} | answer.to_dict())


def table_from_answers(rows: Iterable[tuple[str | Path, Answer]]) -> Table:
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


def table_from_patients(answers: Iterable[PatientAnswer]) -> Table:
    """Return a table for people, one row per patient."""
    table = Table("patient", "label", "confidence", "images", "to review", "failed", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for one in answers:
        label = Text(one.label) if one.label else Text("no answer", style="red")
        sure = f"{one.confidence:.3f}" if one.images else ""
        table.add_row(Text(one.patient), label, sure, str(one.images), str(one.review), str(one.failed))
    return table
