"""CSV manifests with a row per image, read in the same way by training and by `plurum predict`.

A manifest is read as a spreadsheet shows it, or refused. Its encoding is UTF-8, or UTF-16 with a byte order mark. The
delimiter is a comma, semicolon, tab or bar, or the one that a first line such as `sep=;` names. Rows without text are
skipped, missing cells at the end of a row are empty, and blanks around a cell are removed.
"""

from __future__ import annotations

import codecs
import csv
import posixpath
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from plurum.errors import DataError
from plurum.images.image_formats import IMAGE_SUFFIXES
from plurum.regular_files import open_regular
from plurum.remote_files import cached_path, fetch_files, fetch_tree, is_uri, join_uri
from plurum.spellings import check_spellings

__all__ = ["COLUMNS", "ManifestTable", "fetch_data", "file_from_manifest", "is_there", "read_manifest_table"]

# Accepted names of a column, in any case; the first one present is used.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "image_path", "filepath", "file", "filename", "image", "image_id"),
    "label": ("label", "class", "target"),
    "patient": ("patient", "patient_id", "subject", "subject_id", "case_id"),
    "split": ("split", "set", "partition"),
}
# Texts that pandas, R and databases write for a missing value.
_MISSING = frozenset(
    {"nan", "NaN", "NAN", "-nan", "-NaN", "NA", "<NA>", "N/A", "n/a", "#N/A", "#NA", "NULL", "null", "None", "NaT"}
)
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Excel and LibreOffice read the delimiter from such a first line.
_NAMED = re.compile(r'(?:sep=(.)|"sep=(.)")[\r\n]*', re.IGNORECASE)
# Without a limit, a file without line ends would be read into memory completely.
_MAX_LINE = 1 << 20


@dataclass(frozen=True)
class ManifestTable:
    """Columns of a manifest.

    Attributes:
        columns: Cells without blanks at the ends, one per row, by the column's name in `COLUMNS`.
        lines: Line of the file where each row starts, from 1.
        others: Cells of the other columns, by their names in the header; empty unless they were requested.
    """

    columns: dict[str, list[str]]
    lines: array[int]
    others: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def cells(self, name: str) -> list[str]:
        """Return the cells of a column; empty cells if the manifest lacks it."""
        return self.columns.get(name) or [""] * len(self)


def read_manifest_table(path: Path, needed: Sequence[str], *, with_others: bool = False) -> ManifestTable:
    """Return the known columns of the manifest `path`.

    Args:
        path: A CSV file with a header.
        needed: Required columns, by their names in `COLUMNS`.
        with_others: If True, also return the other columns; of those with one name, the first.

    Raises:
        DataError: the file is not readable text, its delimiter is ambiguous, or a column is missing or duplicated.
            There are no rows, or a row has more cells than the header. A label or patient is a text for a missing
            value, or spelled in two ways.
    """
    try:
        with open_regular(path) as file:
            start = file.read(4)
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
        with path.open(encoding=encoding, newline="") as text:
            table = _read(path, text, needed, with_others=with_others)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {_undecodable(path)}; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if not len(table):
        raise DataError(f"{path} has no row below its header")
    for name, plural in (("label", "labels"), ("patient", "patients")):
        _refuse_missing(path, table, name)
        check_spellings(path, name, plural, sorted(set(table.cells(name)) - {""}))
    return table


def file_from_manifest(manifest: Path, name: str) -> Path | None:
    """Return the file that a row names, or None if it does not exist.

    A name is relative to the manifest, or to a folder beside it with the manifest's name (`train/` for `train.csv`).
    The extension is optional. An address such as s3://BUCKET/KEY is the file that `fetch_data` fetched.

    Raises:
        DataError: the name has no extension and matches several files.
    """
    if is_uri(name):
        return cached if is_there(cached := cached_path(name)) else None
    # File names from macOS may use decomposed letters, and spreadsheets composed ones.
    forms = dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
    for folder in (manifest.parent, manifest.parent / manifest.stem):
        for form in forms:
            if is_there(file := folder / form):
                return file
            found = [file for suffix in IMAGE_SUFFIXES if is_there(file := folder / f"{form}{suffix}")]
            if len(found) > 1:
                names = ", ".join(file.name for file in found)
                raise DataError(f"{manifest} names {name}, which matches {names}; add the extension")
            if found:
                return found[0]
    return None


def is_there(file: Path) -> bool:
    """Return True if a manifest's path is a file; False also for invalid paths, such as too long ones."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False


def _read(path: Path, file: TextIO, needed: Sequence[str], *, with_others: bool) -> ManifestTable:
    named = _NAMED.fullmatch(file.readline(_MAX_LINE))
    delimiters = [named[1] or named[2]] if named else list(_DELIMITERS)
    if not set(delimiters) <= set(_DELIMITERS):
        raise DataError(f"{path}: expected {', '.join(_DELIMITERS.values())} as delimiter, got {delimiters[0]!r}")
    above = 1 if named else 0
    header, delimiter = _header(path, file, delimiters, above, needed)
    chosen = _column_indices(header)
    columns: dict[str, list[str]] = {ours: [] for ours in chosen}
    known = set(chosen.values())
    rest = {name: number for number, name in reversed(list(enumerate(header))) if name and number not in known}
    others: dict[str, list[str]] = {name: [] for name in header if name in rest} if with_others else {}
    lines = array("q")
    rows = _rows(path, file, delimiter, above)
    next(rows)
    for line, row in rows:
        if len(row) > len(header) and any(row[len(header) :]):
            raise DataError(
                f"{path}: line {line} has {len(row)} cells, and the header {len(header)}; put cells in double "
                f"quotes that hold {_DELIMITERS[delimiter]}"
            )
        lines.append(line)
        for ours, number in chosen.items():
            columns[ours].append(row[number] if number < len(row) else "")
        for name, cells in others.items():
            cells.append(row[rest[name]] if rest[name] < len(row) else "")
    return ManifestTable(columns, lines, others)


def _header(
    path: Path, file: TextIO, delimiters: Sequence[str], above: int, needed: Sequence[str]
) -> tuple[list[str], str]:
    """Return the header's cells and the delimiter, the only one that yields the needed columns."""
    headers: dict[str, list[str]] = {}
    for delimiter in delimiters:
        try:
            headers[delimiter] = next(_rows(path, file, delimiter, above), (0, []))[1]
        except _NotACsvError as error:
            failed = error
    if not headers:
        raise failed
    fitting = {
        delimiter: header for delimiter, header in headers.items() if _column_indices(header).keys() >= set(needed)
    }
    dividing = [delimiter for delimiter, header in fitting.items() if len(header) > 1]
    if len(dividing) > 1:
        names = " and ".join(_DELIMITERS[delimiter] for delimiter in dividing)
        raise DataError(f"{path} has {names} in its header; name the delimiter in a first line such as sep=;")
    if not fitting:
        raise DataError(_missing_columns(path, max(headers.values(), key=len), needed))
    # A single column has no delimiter.
    delimiter = dividing[0] if dividing else next(iter(fitting))
    header = fitting[delimiter]
    known = [name.lower() for name in header]
    for number in _column_indices(header).values():
        if (times := known.count(known[number])) > 1:
            raise DataError(f"{path}: expected one column {known[number]}, got {times}")
    return header, delimiter


def _missing_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> str:
    chosen = _column_indices(header)
    missing = [f"{name} (or {', '.join(COLUMNS[name][1:])})" for name in needed if name not in chosen]
    had = ", ".join(header) or "none"
    hint = f"; expected delimiters are {', '.join(_DELIMITERS.values())}" if len(header) == 1 else ""
    return f"{path} has no column {' and none '.join(missing)}; it has: {had[:300]}{hint}"


class _NotACsvError(DataError):
    """A quote is not closed, or is closed in the middle of a cell."""


def _rows(path: Path, file: TextIO, delimiter: str, above: int) -> Iterator[tuple[int, list[str]]]:
    """Yield every row with text, from the header on, as stripped cells, with the line where it starts."""
    file.seek(0)
    lines = _lines(path, file)
    for _ in range(above):
        next(lines)
    # As in LibreOffice, a quote may follow blanks.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = above + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _NotACsvError(f"{path} is not a CSV in UTF-8: the row from line {line} on: {error}") from error
        if row is None:
            return
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield line, cells


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if "\0" in line:
            raise DataError(f"{path} is not a CSV in UTF-8: line {number} has a NUL character; save it as 'CSV UTF-8'")
        if len(line) == _MAX_LINE:
            raise DataError(f"{path} is not a CSV: line {number} has more than {_MAX_LINE:,} characters")
        yield line


def _column_indices(header: Sequence[str]) -> dict[str, int]:
    """Return the index of each known column."""
    theirs = {name.lower(): number for number, name in reversed(list(enumerate(header)))}
    return {
        ours: theirs[names[0]]
        for ours, possible in COLUMNS.items()
        if (names := [name for name in possible if name in theirs])
    }


def _refuse_missing(path: Path, table: ManifestTable, name: str) -> None:
    for line, cell in zip(table.lines, table.cells(name), strict=True):
        if cell in _MISSING:
            raise DataError(
                f"{path}: line {line} has the {name} {cell!r}, which means a missing value in pandas and R; leave the "
                f"cell empty if the {name} is unknown, or rename the {name}"
            )


def _undecodable(path: Path) -> str:
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} has the byte 0x{line[error.start]:02x}"
    return "it ends in the middle of a character"


def fetch_data(source: str) -> str:
    """Return the local path of data whose images may lie in a store; other names are returned as they are.

    An address is fetched: an object, a folder of objects, or a manifest with its images. A row of a manifest names an
    address, or a path relative to the manifest. The images of a local manifest may be addresses, too. Listed images
    that the store lacks stay missing.

    Raises:
        DataError: nothing is at the address, access is denied, or the store does not respond.
        MissingExtraError: the package for a store is not installed.
    """
    path = fetch_tree(source) if is_uri(source) else Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        _fetch_listed(path, source if is_uri(source) else None)
    return str(path) if is_uri(source) else source


def _fetch_listed(manifest: Path, uri: str | None) -> None:
    """Fetch the images of a manifest; `uri` is its address if it lies in a store."""
    try:
        names = read_manifest_table(manifest, ["path"]).cells("path")
    except DataError:
        # The reader of the manifest states the fault.
        return
    wanted = [name for name in names if is_uri(name)]
    if uri is not None:
        folder = uri.partition("?")[0].rpartition("/")[0]
        relative = [name for name in names if name and not is_uri(name)]
        for name in relative:
            if name.startswith("/") or posixpath.normpath(name).startswith(".."):
                raise DataError(f"{uri}: expected addresses, or paths below the manifest's folder, got {name}")
        wanted += [join_uri(folder, posixpath.normpath(name)) for name in relative]
    fetch_files(wanted)
