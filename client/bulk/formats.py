"""Answers as rows of a file: CSV, JSON lines, Parquet. The suffix of the file's name says which.

A row has two parts: who is asked about (`Subject`), and the answer (its body, a text that is made when the answer
comes and put behind the first part when the file is written).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Answer, Failure, Prediction
from plurum.errors import OutputError, SettingsError, needs_extra

__all__ = ["SUFFIXES", "Format", "RowWriter", "Subject", "format_from_path"]

SUFFIXES = (".csv", ".jsonl", ".parquet")
_COLUMNS = ("label", "confidence", "review", "entropy", "disagreement", "prediction_set")
_PATIENT_COUNTS = ("images", "review", "failed")
# Parquet is written so many rows at a time.
_ROW_GROUP = 10_000


class Subject(NamedTuple):
    """Who a row is about.

    Attributes:
        path: Of the image.
        patient: Whose it is; empty where that isn't known.
        expected: What it is known to show; likewise.
    """

    path: str
    patient: str = ""
    expected: str = ""


class RowWriter(Protocol):
    """Writes rows to a file."""

    def add(self, subject: Subject, body: str) -> None:
        """Write a row."""

    def close(self) -> None:
        """Write what is left."""


class Format(Protocol):
    """One way to write answers.

    Numbers have six decimals in CSV, of which 32-bit numbers hold no more; prediction_set has `|` between its classes.
    """

    def body(self, answer: Answer) -> str:
        """Return an answer's part of a row."""

    def numbers(self, body: str) -> list[float]:
        """Return the probabilities, by class, from the body of a `Prediction`."""

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        """Begin a file whose rows name these of `Subject`'s attributes."""

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        """Write a file with a row per patient."""


def format_from_path(path: Path, classes: Sequence[str]) -> Format:
    """Return how to write answers with these classes to a file of this name.

    Raises:
        MissingExtraError: it ends in .parquet, and pyarrow is not installed.
        OutputError: it is a folder.
        SettingsError: it ends in none of `SUFFIXES`.
    """
    kinds: dict[str, type[_Csv | _JsonLines | _Parquet]] = dict(
        zip(SUFFIXES, (_Csv, _JsonLines, _Parquet), strict=True)
    )
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise SettingsError(f"{path}: what is written is told by how its name ends: {', '.join(SUFFIXES)}")
    return kind(classes)


class _Csv:
    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._cells = {name: _cell(name) for name in classes}
        self._answer = "%s,%.6f,%s,%.6f,%.6f,%s," + "%.6f," * len(classes)
        self._failure = "," * (len(_COLUMNS) + len(classes)) + "%s"

    def body(self, answer: Answer) -> str:
        if isinstance(answer, Failure):
            return self._failure % _cell(answer.reason)
        inside = answer.prediction_set
        return self._answer % (
            self._cells.get(answer.label) or _cell(answer.label),
            answer.confidence,
            "true" if answer.review else "false",
            answer.entropy,
            answer.disagreement,
            self._cells[inside[0]] if len(inside) == 1 else _cell("|".join(inside)),
            *answer.probabilities.values(),
        )

    def numbers(self, body: str) -> list[float]:
        return [float(cell) for cell in next(csv.reader([body]))[len(_COLUMNS) : -1]]

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        head = [*columns, *_COLUMNS, *(f"p_{name}" for name in self._classes), "error"]
        return _Lines(
            path, ",".join(map(_cell, head)) + "\r\n", lambda subject, body: _csv_line(columns, subject, body)
        )

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, _patient_columns(self._classes), restval="")
            rows.writeheader()
            for answer in answers:
                row = _patient_row(answer)
                rows.writerow({name: f"{cell:.6f}" if isinstance(cell, float) else cell for name, cell in row.items()})


class _JsonLines:
    def __init__(self, _: Sequence[str]) -> None:
        """Each line names its classes itself."""

    def body(self, answer: Answer) -> str:
        return json.dumps(answer.to_dict())

    def numbers(self, body: str) -> list[float]:
        return list(json.loads(body)["probabilities"].values())

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        return _Lines(path, "", lambda subject, body: _json_line(columns, subject, body))

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(answer.to_dict()) + "\n" for answer in answers)


class _Parquet:
    def __init__(self, classes: Sequence[str]) -> None:
        with needs_extra("parquet", "pyarrow.parquet"):
            self._classes = classes

    def body(self, answer: Answer) -> str:
        if isinstance(answer, Failure):
            return json.dumps([*[None] * (len(_COLUMNS) + len(self._classes)), answer.reason])
        return json.dumps([*_values(answer), *answer.probabilities.values(), None])

    def numbers(self, body: str) -> list[float]:
        return list(json.loads(body)[len(_COLUMNS) : -1])

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        return _Table(path, columns, self._classes)

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        write: Any = parquet.write_table
        columns = _patient_columns(self._classes)
        kinds = {"patient": pa.string(), "label": pa.string()} | dict.fromkeys(_PATIENT_COUNTS, pa.int64())
        schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in columns])
        rows = [dict.fromkeys(columns) | _patient_row(answer) for answer in answers]
        write(pa.Table.from_pylist(rows, schema), path)


class _Lines:
    """A text file; names that are no UTF-8 are written as the bytes that they are."""

    def __init__(self, path: Path, head: str, line: Any) -> None:
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._line = line
        self._file.write(head)

    def add(self, subject: Subject, body: str) -> None:
        self._file.write(self._line(subject, body))

    def close(self) -> None:
        self._file.close()


class _Table:
    """A Parquet file."""

    def __init__(self, path: Path, columns: Sequence[str], classes: Sequence[str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        new_writer: Any = parquet.ParquetWriter
        number = pa.float32()
        types = dict.fromkeys(columns, pa.string())
        types |= {"label": pa.string(), "confidence": number, "review": pa.bool_(), "entropy": number}
        types |= {"disagreement": number, "prediction_set": pa.list_(pa.string())}
        types |= {f"p_{name}": number for name in classes} | {"error": pa.string()}
        self._schema = pa.schema(list(types.items()))
        self._columns = columns
        self._rows: list[list[Any]] = []
        self._writer = new_writer(path, self._schema)

    def add(self, subject: Subject, body: str) -> None:
        # Arrow's text is UTF-8 and nothing else.
        who = [getattr(subject, name).encode("utf-8", "backslashreplace").decode() for name in self._columns]
        self._rows.append([*who, *json.loads(body)])
        if len(self._rows) == _ROW_GROUP:
            self._write()

    def close(self) -> None:
        if self._rows:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa

        arrays = [
            pa.array(list(values), one.type)
            for values, one in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows.clear()


def _values(answer: Prediction) -> Iterable[Any]:
    """Return the columns of an answer, in their order."""
    return (getattr(answer, name) for name in _COLUMNS)


def _patient_columns(classes: Sequence[str]) -> list[str]:
    return ["patient", "label", "confidence", *_PATIENT_COUNTS, *(f"p_{name}" for name in classes)]


def _patient_row(answer: PatientAnswer) -> dict[str, Any]:
    """Return the cells of one without an answer to any image as what they are: missing."""
    row = answer.to_dict()
    shares = row.pop("probabilities")
    if not answer.images:
        del row["label"], row["confidence"]
    return row | {f"p_{name}": value for name, value in shares.items()}


def _cell(text: str) -> str:
    """Return a cell of a CSV file, quoted where it must be."""
    if not any(letter in text for letter in ',"\r\n'):
        return text
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow([text])
    return file.getvalue()


def _csv_line(columns: Sequence[str], subject: Subject, body: str) -> str:
    if len(columns) == 1:
        return f"{_cell(subject.path)},{body}\r\n"
    return f"{','.join(_cell(getattr(subject, name)) for name in columns)},{body}\r\n"


def _json_line(columns: Sequence[str], subject: Subject, body: str) -> str:
    who = json.dumps({name: getattr(subject, name) for name in columns})
    return f"{who[:-1]}, {body[1:]}\n"
