"""Write predictions as tables for terminals, files for spreadsheets, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from plurum.client.bulk.columns import columns_of_images, columns_of_patients
from plurum.client.bulk.formats import Format, RowSubject, RowWriter, format_from_path
from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.files import atomic_file
from plurum.promises.review import promise_text
from plurum.sentences import point_text

__all__ = [
    "AnswersReport",
    "answers_report",
    "decision_lines",
    "json_line",
    "patients_report",
    "table_from_answers",
    "table_from_patients",
]


class AnswersReport:
    """A file with one row per image; see `answers_report`."""

    def __init__(self, form: Format, rows: RowWriter) -> None:
        self._form, self._rows = form, rows

    def add(self, path: str | Path, answer: Answer | PatientAnswer) -> None:
        """Write the row of one image."""
        self._rows.add(RowSubject(str(path)), self._form.body(answer))


@contextmanager
def answers_report(
    path: Path,
    classes: Sequence[str],
    *,
    has_audit: bool = False,
    has_outliers: bool = False,
    has_cascade: bool = False,
) -> Iterator[AnswersReport]:
    """Open a file of predictions, which appears at `path` only if the block ends without an error.

    The suffix chooses the format: `.csv`, `.jsonl` or `.parquet`. Columns of CSV and Parquet: path, label, confidence,
    review (true or false), review_reason (with `has_outliers`), audit (with `has_audit`), entropy, disagreement,
    outlier (with `has_outliers`), prediction_set, one `p_CLASS` per class, members_used (with `has_cascade`), and
    error, which is empty for a prediction, and the only value beside path for a failure. CSV joins the reasons, the
    classes of a set, and the members, by `|`. JSON lines are those of `json_line`.

    Args:
        path: File to write.
        classes: Class names, in the order of the outputs.
        has_audit: True if the server draws audits; see `Served.has_audit`.
        has_outliers: True if the server tests for outliers; see `Served.has_outliers`.
        has_cascade: True if the server runs a cascade; see `Served.has_cascade`.

    Raises:
        MissingExtraError: pyarrow is required and not installed.
        OutputError: `path` can't be written.
        SettingsError: the suffix is not supported.
    """
    columns = columns_of_images(classes, has_audit=has_audit, has_outliers=has_outliers, has_cascade=has_cascade)
    with _report(path, format_from_path(path, columns), ("path",)) as report:
        yield report


def patients_report(path: Path, answers: Iterable[PatientAnswer], classes: Sequence[str]) -> None:
    """Write one row per patient to `path` atomically; formats and errors are those of `answers_report`.

    Columns: patient, label, confidence, images, review and failed (numbers of images), one `p_CLASS` per class; JSON
    lines have `probabilities` instead.
    """
    with _report(path, format_from_path(path, columns_of_patients(classes)), ()) as report:
        for answer in answers:
            report.add("", answer)


@contextmanager
def _report(path: Path, form: Format, columns: Sequence[str]) -> Iterator[AnswersReport]:
    with atomic_file(path, private=True) as hidden, closing(form.writer(hidden, columns)) as rows:
        yield AnswersReport(form, rows)


def json_line(path: str | Path, answer: Answer) -> str:
    """Return one image's result as a JSON object in one line; a failure has only `path` and `error`."""
    return json.dumps({"path": str(path)} | answer.to_dict())


def decision_lines(served: Served) -> list[str]:
    """Return what the served ensemble states about its decisions: its operating point, and its promise."""
    point, promise = served.operating_point, served.promise
    lines = [] if point is None else [f"operating point: {point_text(point)}"]
    return lines if promise is None else [*lines, promise_text(promise)]


def table_from_answers(rows: Iterable[tuple[str | Path, Answer]]) -> Table:
    """Return a table for a terminal, one row per image; images that need review, and audits, are marked."""
    table = Table("path", "label", "confidence", "entropy", "disagreement", "review", box=None, pad_edge=False)
    for column in table.columns[2:5]:
        column.justify = "right"
    for path, answer in rows:
        # A file name may hold invalid UTF-8, and square brackets that Rich would read as markup.
        name = Text(str(path).encode("utf-8", "replace").decode("utf-8"))
        if isinstance(answer, Failure):
            table.add_row(name, Text("no answer", style="red"))
            continue
        numbers = (f"{number:.3f}" for number in (answer.confidence, answer.entropy, answer.disagreement))
        mark = _review_mark(answer) if answer.review else "audit" if answer.audit else ""
        table.add_row(name, Text(answer.label), *numbers, Text(mark, style="yellow"))
    return table


def _review_mark(prediction: Prediction) -> str:
    """Return the mark of a prediction that needs review, with its reasons if the server states them."""
    return "review" + "".join(f" {name}" for name in prediction.review_reason or ())


def table_from_patients(answers: Iterable[PatientAnswer]) -> Table:
    """Return a table for a terminal, one row per patient."""
    table = Table("patient", "label", "confidence", "images", "to review", "failed", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for one in answers:
        label = Text(one.label) if one.label else Text("no answer", style="red")
        sure = f"{one.confidence:.3f}" if one.images else ""
        table.add_row(Text(one.patient), label, sure, str(one.images), str(one.review), str(one.failed))
    return table
