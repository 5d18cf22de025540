"""Write predictions as rows of a file: CSV, JSON lines or Parquet, chosen by the file's suffix.

A row has two parts: the image (`RowSubject`), and its prediction (the body). The body is formatted when the prediction
arrives, and appended to the first part when the file is written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plurum.client.bulk.columns import FILE_COLUMNS, cells_by_class, columns_of_files
from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Answer, Failure
from plurum.errors import OutputError, SettingsError, needs_extra
from plurum.predictions.outputs import OUTPUTS, Output

__all__ = ["SUFFIXES", "Format", "RowSubject", "RowWriter", "format_from_path"]

SUFFIXES = (".csv", ".jsonl", ".parquet")
_PATIENT_COUNTS = ("images", "review", "failed")
_SHARES = OUTPUTS["PROBABILITIES"]
# Number of rows that are written to Parquet at a time.
_ROW_GROUP = 10_000


class RowSubject(NamedTuple):
    """The image that a row describes.

    Attributes:
        path: Path of the image.
        patient: Name of the patient; empty if unknown.
        expected: Known label of the image; empty if unknown.
    """

    path: str
    patient: str = ""
    expected: str = ""


class RowWriter(Protocol):
    """Writes rows to a file."""

    def add(self, subject: RowSubject, body: str) -> None:
        """Write a row."""

    def close(self) -> None:
        """Write the remaining rows, and close the file."""


class Format(Protocol):
    """A file format for predictions.

    CSV has six decimals, the precision of 32-bit numbers, and joins the classes of prediction_set by `|`.
    """

    def body(self, answer: Answer) -> str:
        """Return the body of a row."""

    def numbers(self, body: str) -> list[float]:
        """Return the probabilities, in the order of the classes, from the body of a `Prediction`."""

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        """Create a file whose rows start with these attributes of `RowSubject`."""

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        """Write a file with a row per patient."""


def format_from_path(path: Path, classes: Sequence[str]) -> Format:
    """Return the format for predictions with these classes, chosen by the suffix of `path`.

    Raises:
        MissingExtraError: the suffix is .parquet, and pyarrow is not installed.
        OutputError: `path` is a folder.
        SettingsError: the suffix is not one of `SUFFIXES`.
    """
    kinds: dict[str, type[_Csv | _JsonLines | _Parquet]] = dict(
        zip(SUFFIXES, (_Csv, _JsonLines, _Parquet), strict=True)
    )
    if path.is_dir():
        raise OutputError(f"{path}: expected a file, got a folder. Give a file name.")
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise SettingsError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}. Change the suffix.")
    return kind(classes)


class _Columnar:
    """A format whose rows have the columns of `plurum.client.bulk.columns`, and `error` at the end."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._columns = columns_of_files(classes)

    def _values(self, answer: Answer) -> list[Any]:
        """Return the cells of a row, None where there is no value."""
        if isinstance(answer, Failure):
            return [*[None] * len(self._columns), answer.reason]
        cells: list[Any] = []
        for output in FILE_COLUMNS:
            value = getattr(answer, output.field)
            cells.extend(value.values() if isinstance(value, dict) else (value,))
        return [*cells, None]

    def _probabilities(self, cells: Sequence[Any]) -> list[float]:
        outputs = self._columns.values()
        return [float(cell) for output, cell in zip(outputs, cells, strict=False) if output.name == "PROBABILITIES"]


class _Csv(_Columnar):
    def body(self, answer: Answer) -> str:
        return ",".join(map(_cell, self._values(answer)))

    def numbers(self, body: str) -> list[float]:
        return self._probabilities(next(csv.reader([body])))

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        head = ",".join(map(_cell, [*columns, *self._columns, "error"]))
        return _Lines(path, f"{head}\r\n", lambda subject, body: _csv_line(columns, subject, body))

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        columns = _patient_columns(self._classes)
        rows = (map(_patient_row(answer).get, columns) for answer in answers)
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(",".join(map(_cell, row)) + "\r\n" for row in (columns, *rows))


class _JsonLines:
    def __init__(self, _: Sequence[str]) -> None:
        """Ignore the classes, which each line states."""

    def body(self, answer: Answer) -> str:
        return json.dumps(answer.to_dict())

    def numbers(self, body: str) -> list[float]:
        return list(json.loads(body)["probabilities"].values())

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        return _Lines(path, "", lambda subject, body: _json_line(columns, subject, body))

    def write_patients(self, path: Path, answers: Sequence[PatientAnswer]) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(answer.to_dict()) + "\n" for answer in answers)


class _Parquet(_Columnar):
    def __init__(self, classes: Sequence[str]) -> None:
        with needs_extra("parquet", "pyarrow.parquet"):
            super().__init__(classes)

    def body(self, answer: Answer) -> str:
        return json.dumps(self._values(answer))

    def numbers(self, body: str) -> list[float]:
        return self._probabilities(json.loads(body))

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        return _Table(path, columns, self._columns)

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
    """A text file; file names that are not UTF-8 are written as their original bytes."""

    def __init__(self, path: Path, head: str, line: Any) -> None:
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._line = line
        self._file.write(head)

    def add(self, subject: RowSubject, body: str) -> None:
        self._file.write(self._line(subject, body))

    def close(self) -> None:
        self._file.close()


class _Table:
    """A Parquet file."""

    def __init__(self, path: Path, columns: Sequence[str], outputs: Mapping[str, Output]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        new_writer: Any = parquet.ParquetWriter
        kinds = {"BYTES": pa.string(), "FP32": pa.float32(), "BOOL": pa.bool_()}
        types = dict.fromkeys([*columns, *outputs, "error"], pa.string())
        for name, output in outputs.items():
            is_set = output.datatype == "BOOL" and not output.is_scalar
            types[name] = pa.list_(pa.string()) if is_set else kinds[output.datatype]
        self._schema = pa.schema(list(types.items()))
        self._columns = columns
        self._rows: list[list[Any]] = []
        self._writer = new_writer(path, self._schema)

    def add(self, subject: RowSubject, body: str) -> None:
        # Arrow accepts only UTF-8.
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


def _patient_columns(classes: Sequence[str]) -> list[str]:
    return ["patient", "label", "confidence", *_PATIENT_COUNTS, *cells_by_class(_SHARES, dict.fromkeys(classes))]


def _patient_row(answer: PatientAnswer) -> dict[str, Any]:
    """Return the cells of a patient's row; without any prediction, label and confidence are missing."""
    row = answer.to_dict()
    shares = row.pop("probabilities")
    if not answer.images:
        del row["label"], row["confidence"]
    return row | cells_by_class(_SHARES, shares)


def _cell(value: Any) -> str:
    """Return a cell of a CSV file, quoted if necessary."""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "|".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
    if not any(letter in text for letter in ',"\r\n'):
        return text
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow([text])
    return file.getvalue()


def _csv_line(columns: Sequence[str], subject: RowSubject, body: str) -> str:
    return f"{','.join(_cell(getattr(subject, name)) for name in columns)},{body}\r\n"


def _json_line(columns: Sequence[str], subject: RowSubject, body: str) -> str:
    who = json.dumps({name: getattr(subject, name) for name in columns})
    return f"{who[:-1]}, {body[1:]}\n"
