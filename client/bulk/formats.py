"""Write predictions as rows of a file: CSV, JSON lines or Parquet, chosen by the file's suffix.

A row has two parts: the image (`RowSubject`), and its prediction (the body). The body is formatted when the prediction
arrives, and appended to the first part when the file is written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plurum.client.bulk.columns import FILE_COLUMNS, PROBABILITY, Kind, row_from_patient
from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Answer, Failure, Prediction
from plurum.errors import OutputError, SettingsError, needs_extra

__all__ = [
    "SUFFIXES",
    "Columnar",
    "Format",
    "RowSubject",
    "RowWriter",
    "arrow_schema",
    "arrow_text",
    "format_from_path",
    "table_from_columns",
]

SUFFIXES = (".csv", ".jsonl", ".parquet")
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

    def body(self, answer: Answer | PatientAnswer) -> str:
        """Return the body of a row."""

    def numbers(self, body: str) -> list[float]:
        """Return the probabilities, in the order of the classes, from the body of a `Prediction`."""

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        """Create a file whose rows start with these attributes of `RowSubject`."""


def format_from_path(path: Path, columns: Mapping[str, Kind]) -> Format:
    """Return the format for rows with these columns, chosen by the suffix of `path`.

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
    return kind(columns)


class Columnar:
    """A format with columns; a cell without a value is None.

    Args:
        columns: Columns of the predictions, and what they hold.
    """

    def __init__(self, columns: Mapping[str, Kind]) -> None:
        self._columns = columns
        self._outputs = [one for one in FILE_COLUMNS if not one.is_optional or one.column in columns]
        self._is_probability = [name.startswith(PROBABILITY.column.format(name="")) for name in columns]

    def cells(self, answer: Answer | PatientAnswer) -> list[Any]:
        """Return the values of a row, in the order of the columns."""
        if not isinstance(answer, Prediction):
            row = {"error": answer.reason} if isinstance(answer, Failure) else row_from_patient(answer)
            return [row.get(name) for name in self._columns]
        # Faster than by name: there may be a million predictions.
        cells: list[Any] = []
        for output in self._outputs:
            value = getattr(answer, output.field)
            cells.extend(value.values() if isinstance(value, dict) else (value,))
        return [*cells, None]

    def _probabilities(self, cells: Iterable[Any]) -> list[float]:
        return list(map(float, compress(cells, self._is_probability)))


class _Csv(Columnar):
    def body(self, answer: Answer | PatientAnswer) -> str:
        return ",".join(map(_cell, self.cells(answer)))

    def numbers(self, body: str) -> list[float]:
        return self._probabilities(next(csv.reader([body])))

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        def line(subject: RowSubject, body: str) -> str:
            return ",".join([*(_cell(getattr(subject, name)) for name in columns), body]) + "\r\n"

        return _Lines(path, ",".join(map(_cell, [*columns, *self._columns])) + "\r\n", line)


class _JsonLines:
    def __init__(self, _: Mapping[str, Kind]) -> None:
        """Ignore the columns: each line states its names."""

    def body(self, answer: Answer | PatientAnswer) -> str:
        return json.dumps(answer.to_dict())

    def numbers(self, body: str) -> list[float]:
        return list(json.loads(body)["probabilities"].values())

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        def line(subject: RowSubject, body: str) -> str:
            who = (f"{json.dumps(name)}: {json.dumps(getattr(subject, name))}, " for name in columns)
            return f"{{{''.join(who)}{body[1:]}\n"

        return _Lines(path, "", line)


class _Parquet(Columnar):
    def __init__(self, columns: Mapping[str, Kind]) -> None:
        with needs_extra("parquet", "pyarrow.parquet"):
            super().__init__(columns)

    def body(self, answer: Answer | PatientAnswer) -> str:
        return json.dumps(self.cells(answer))

    def numbers(self, body: str) -> list[float]:
        return self._probabilities(json.loads(body))

    def writer(self, path: Path, columns: Sequence[str]) -> RowWriter:
        return _Table(path, columns, self._columns)


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

    def __init__(self, path: Path, columns: Sequence[str], kinds: Mapping[str, Kind]) -> None:
        from pyarrow import parquet

        new_writer: Any = parquet.ParquetWriter
        self._schema = arrow_schema(columns, kinds)
        self._columns = columns
        self._rows: list[list[Any]] = []
        self._writer = new_writer(path, self._schema)

    def add(self, subject: RowSubject, body: str) -> None:
        who = [arrow_text(getattr(subject, name)) for name in self._columns]
        self._rows.append([*who, *json.loads(body)])
        if len(self._rows) == _ROW_GROUP:
            self._write()

    def close(self) -> None:
        if self._rows:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(table_from_columns(zip(*self._rows, strict=True), self._schema))
        self._rows.clear()


def arrow_text(text: str) -> str:
    """Return a text in UTF-8, the only one that Arrow accepts; other bytes of a file name become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def arrow_schema(columns: Iterable[str], kinds: Mapping[str, Kind]) -> Any:
    """Return the Arrow schema of rows that start with texts.

    Args:
        columns: Names of the texts.
        kinds: Other columns, and what they hold.
    """
    import pyarrow as pa

    types: dict[Kind, Any] = {"text": pa.string(), "texts": pa.list_(pa.string()), "flag": pa.bool_()}
    types |= {"count": pa.int64(), "float32": pa.float32(), "float64": pa.float64()}
    fields = dict.fromkeys(columns, pa.string()) | {name: types[kind] for name, kind in kinds.items()}
    return pa.schema(list(fields.items()))


def table_from_columns(columns: Iterable[Sequence[Any]], schema: Any) -> Any:
    """Return columns, in the order of the schema, as an Arrow table."""
    import pyarrow as pa

    return pa.table([pa.array(values, one.type) for values, one in zip(columns, schema, strict=True)], schema=schema)


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
