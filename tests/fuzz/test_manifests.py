"""Manifests, broken at random: read as they stand there, or refused in one line."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from plurum.client import listing_from_names
from plurum.manifests import ManifestTable, read_manifest_table
from plurum.training.data.manifests import files_from_manifest
from tests.fuzz.mutations import Fuzz, broken_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_HEADERS = (
    ["path", "label"],
    ["path", "label", "patient", "split"],
    ["Image_ID", "center", "Patient_ID", "TARGET"],
    ["file", "class", "subject", "set", "", ""],
    ["path"],
)
_CELLS = (
    *("a.png", "b.png", "c", "d.tif", "sub/e.png", "CE", "LAA", "ce", "train", "val", "test", "p1", "p2", "", " ", "1"),
    *("1.0", "007", "nan", "x,y", 'say "a"', "two\nlines", "a;b", "\u00e4", "a\u0308", "\u200b", "=1+1", "\ufeff"),
)


def manifest(draw: random.Random) -> tuple[bytes, list[list[str]]]:
    """Return a manifest as some program writes it, and its rows."""
    header = draw.choice(_HEADERS)
    cells = _CELLS[: draw.choice((14, len(_CELLS)))]
    rows = [[draw.choice(cells) for _ in header] for _ in range(draw.randint(0, 6))]
    delimiter = draw.choice(",;\t|")
    file = io.StringIO(newline="")
    if draw.random() < 0.2:
        file.write(f"sep={delimiter}\n")
    writer = csv.writer(file, delimiter=delimiter, quoting=draw.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))
    writer.writerows([header, *rows])
    encoding = draw.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"))
    kept = [[cell.encode(encoding, "replace").decode(encoding) for cell in row] for row in rows]
    return file.getvalue().encode(encoding, "replace"), kept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "c.jpg", "d.tif", "sub/e.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_manifests(folder: Path) -> None:
    fuzz, path = Fuzz("manifests"), folder / "images.csv"
    for draw in fuzz.draws():
        whole, rows = manifest(draw)
        content = broken_bytes(draw, whole)
        path.write_bytes(content)
        table: ManifestTable | None = fuzz.fed(lambda: read_manifest_table(path, ["path"]), content)
        if table is not None and content == whole:
            shown = [[cell.strip() for cell in row] for row in rows]
            assert table.cells("path") == [row[0] for row in shown if any(row)], f"{fuzz}: {content!r}"
        if table is not None:
            _check(fuzz, table, content)
        listing = fuzz.fed(lambda: listing_from_names([path]), content)
        if listing is not None:
            assert table is not None
            assert len(listing) <= len(table)
        files = fuzz.fed(lambda: files_from_manifest(path), content)
        if files is not None:
            assert table is not None
            assert [files.classes[label] for label in files.labels] == table.cells("label"), f"{fuzz}: {content!r}"
            assert list(files.patients) == table.cells("patient"), f"{fuzz}: {content!r}"
            assert all(one.is_file() for one in files.paths)


def _check(fuzz: Fuzz, table: ManifestTable, content: bytes) -> None:
    """Make sure that every cell stands in the line where its row begins, in order."""
    assert list(table.lines) == sorted(set(table.lines)), f"{fuzz}: {content!r}"
    encoding = "utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    lines = io.StringIO(content.decode(encoding), newline="").readlines()
    for name, column in table.columns.items():
        for number, cell in zip(table.lines, column, strict=True):
            # Quotes may be doubled there; cells of several lines go on below.
            rest = "".join(lines[number - 1 :]).replace('"', "")
            assert cell.replace('"', "") in rest, f"{fuzz}: {name} {cell!r} of line {number} in {content!r}"
