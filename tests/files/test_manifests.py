"""Manifests are read as a spreadsheet shows them, or refused."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plurum.errors import DataError
from plurum.manifests import ManifestTable, file_from_manifest, read_manifest_table

Rows = list[list[str]]
KNOWN = ("path", "label", "patient", "split")
DELIMITERS = ",;\t|"
QUOTINGS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)


def table_of(folder: Path, text: str | bytes, *needed: str) -> ManifestTable:
    path = folder / "images.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_manifest_table(path, needed or ("path",))


def refused(folder: Path, text: str | bytes, *needed: str) -> str:
    with pytest.raises(DataError) as caught:
        table_of(folder, text, *needed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dataclass(frozen=True)
class Written:
    """Table, and the format in which a program wrote it."""

    header: list[str]
    rows: Rows
    delimiter: str
    quoting: int
    end: str
    encoding: str
    named: bool

    @property
    def content(self) -> bytes:
        file = io.StringIO(newline="")
        if self.named:
            file.write(f"sep={self.delimiter}{self.end}")
        writer = csv.writer(file, delimiter=self.delimiter, quoting=self.quoting, lineterminator=self.end)  # type: ignore[arg-type]
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return file.getvalue().encode(self.encoding)

    def shown(self, name: str) -> list[str]:
        """Return the cells that a spreadsheet shows in a column, without empty rows."""
        cells = [[cell.strip() for cell in row] for row in self.rows]
        return [row[self.header.index(name)] for row in cells if any(row)]


any_cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["a,b", "a;b", '"', '""', ' "a" ', "a\nb", "a\r\nb", "x\ty", "007", "1.0", " ", "", "nan", "ce", "CE", "sep=;", "|"]
)
tame_cell = st.from_regex(r"[a-z]{1,4}[0-9]{1,3}", fullmatch=True)


@st.composite
def written(draw: st.DrawFn, cells: st.SearchStrategy[str] = any_cell) -> Written:
    header = draw(st.permutations([*KNOWN, "site", ""]))[: draw(st.integers(2, 6))]
    if "path" not in header:
        header = ["path", *header[1:]]
    rows = draw(st.lists(st.lists(cells, min_size=len(header), max_size=len(header)), max_size=5))
    for place in draw(st.lists(st.integers(0, len(rows)), max_size=2)):
        rows.insert(place, [""] * len(header))
    return Written(
        header=[draw(st.sampled_from([name, name.upper(), f" {name} "])) for name in header],
        rows=rows,
        delimiter=draw(st.sampled_from(DELIMITERS)),
        # Up to Python 3.12, the csv module quotes only its own line ends.
        quoting=csv.QUOTE_ALL
        if any(re.search(r"[\r\n]", cell) for row in rows for cell in row)
        else draw(st.sampled_from(QUOTINGS)),
        end=draw(st.sampled_from(["\n", "\r\n", "\r"])),
        encoding=draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        named=draw(st.booleans()),
    )


def named(table: Written) -> Written:
    """Return the table with the drawn column names in its header."""
    return Written(
        [name.strip().lower() for name in table.header],
        *(table.rows, table.delimiter, table.quoting, table.end, table.encoding, table.named),
    )


several = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@several
@given(written())
def test_random_manifests_are_read_back_or_refused(tmp_path: Path, table: Written) -> None:
    try:
        read = table_of(tmp_path, table.content)
    except DataError:
        return
    for name in set(KNOWN) & {name.strip().lower() for name in table.header}:
        assert read.columns[name] == named(table).shown(name)


@several
@given(written(tame_cell))
def test_tables_without_oddities_are_read_however_they_were_written(tmp_path: Path, table: Written) -> None:
    if table.rows and any(any(row) for row in table.rows):
        read = table_of(tmp_path, table.content)
        assert read.columns["path"] == named(table).shown("path")
    else:
        assert "has no row below its header" in refused(tmp_path, table.content)


@several
@given(
    st.text('ab1 ,;|\t"\n', max_size=60), st.sampled_from(["path,label", "path;label", "label\tpath", '"path"|"label"'])
)
def test_any_text_that_is_read_is_read_as_pandas_does(tmp_path: Path, text: str, header: str) -> None:
    content = f"{header}\n{text}"
    try:
        read = table_of(tmp_path, content, "path", "label")
    except DataError:
        return
    delimiter = next(one for one in DELIMITERS if one in header)
    frame = pd.read_csv(
        io.StringIO(content, newline=""),
        sep=delimiter,
        dtype=str,
        na_filter=False,
        skipinitialspace=True,
        header=None,
        names=range(80),
        index_col=False,
    ).fillna("")
    rows = [[cell.strip() for cell in row] for row in frame.to_numpy().tolist()]
    rows = [row for row in rows if any(row)]
    for name in ("path", "label"):
        assert [row[rows[0].index(name)] for row in rows[1:]] == read.columns[name]


@pytest.mark.parametrize(
    ("text", "paths", "labels", "lines"),
    [
        ("path;label\na,b.png;CE\n", ["a,b.png"], ["CE"], [2]),
        ("path\tlabel\na.png\tCE\n", ["a.png"], ["CE"], [2]),
        ("sep=;\r\npath;label\r\na.png;CE\r\n", ["a.png"], ["CE"], [3]),
        ('"sep=|"\npath|label\na.png|CE\n', ["a.png"], ["CE"], [3]),
        ("path,label\n\n,\na.png,CE\n , \n", ["a.png"], ["CE"], [4]),
        ("\n\npath,label\na.png,CE", ["a.png"], ["CE"], [4]),
        ('path,label,note\na.png,CE,"two\nlines"\nb.png,CE,\n', ["a.png", "b.png"], ["CE", "CE"], [2, 4]),
        ("path,label,,\na.png,CE,,\nb.png,CE,,,,\n", ["a.png", "b.png"], ["CE", "CE"], [2, 3]),
        ("path,label,patient\na.png,CE\n", ["a.png"], ["CE"], [2]),
        ("path,label\n007.png,007\n1.png,1.50\n", ["007.png", "1.png"], ["007", "1.50"], [2, 3]),
        ('path,label\n "a,b.png", CE \n', ["a,b.png"], ["CE"], [2]),
        ("path\na;b.png\n", ["a;b.png"], [""], [2]),
        ("path,label\ra.png,CE\r", ["a.png"], ["CE"], [2]),
    ],
)
def test_each_form(tmp_path: Path, text: str, paths: list[str], labels: list[str], lines: list[int]) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        table = table_of(tmp_path, text.encode(encoding))
        assert (table.cells("path"), table.cells("label"), list(table.lines)) == (paths, labels, lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\na.png,CE,LAA\n",
            "line 2 has 3 cells, and the header 2; put cells in double quotes that hold commas",
        ),
        ("path;label\na.png;CE\nb;c.png;CE\n", "line 3 has 3 cells, and the header 2; .* hold semicolons"),
        ("path:label\na.png:CE\n", "it has: path:label; expected delimiters are commas, semicolons, tabs, bars"),
        ("path,x;path\na;b\n", "has commas and semicolons in its header; name the delimiter in a first line"),
        ("sep=:\npath:label\na:b\n", "expected commas, semicolons, tabs, bars as delimiter, got ':'"),
        ('path,label\n"a.png,CE\n', "the row from line 2 on: unexpected end of data"),
        ('path,label\n"a".png,CE\n', "the row from line 2 on: ',' expected after '\"'"),
        ("path,label\na.png,nan\n", "line 2 has the label 'nan', which means a missing value"),
        ("path,patient\na.png,p\nb.png,NA\n", "line 3 has the patient 'NA', which means a missing value"),
        ("path,label\na.png,1\nb.png,1.0\n", "has the labels '1' and '1.0', which are one name in different spellings"),
        ("path,label\na.png,CE\nb.png,ce\n", "has the labels 'CE' and 'ce', which are one name"),
        ("path,patient\na.png,12\nb.png,12.0\n", "has the patients '12' and '12.0', which are one name"),
        ("path,label\na.png,\u00e4\nb.png,a\u0308\n", r"has the labels 'a\\u0308' and '\\xe4', which"),
        (b"path,label\n\xe4.png,CE\n", "is not a CSV in UTF-8: line 2 has the byte 0xe4; save it as 'CSV UTF-8'"),
        ("path,label\na.png,CE\n".encode("utf-16-le"), "line 1 has a NUL character; save it as 'CSV UTF-8'"),
        ("path,label\na.png,CE\n".encode("utf-16")[:-1], "is not a CSV in UTF-8"),
        ("path,label\na.png,CE\n".encode("utf-32"), "has a NUL character"),
        ("", "has no column path .*; it has: none"),
        ("path\n\n  \n", "has no row below its header"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert re.search(message, refused(tmp_path, text))


def test_a_name_without_its_extension_means_one_file(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "b.png", "c", "c.png", "Ha\u0308matom.png"):
        (tmp_path / name).write_bytes(b"")
    manifest = tmp_path / "images.csv"
    with pytest.raises(DataError, match=r"names a, which matches a\.png, a\.tif; add the extension"):
        file_from_manifest(manifest, "a")
    assert file_from_manifest(manifest, "b") == tmp_path / "b.png"
    assert file_from_manifest(manifest, "c") == tmp_path / "c"
    assert file_from_manifest(manifest, str(tmp_path / "b.png")) == tmp_path / "b.png"
    # macOS decomposes letters in file names; spreadsheets compose them.
    assert file_from_manifest(manifest, "H\u00e4matom.png") == tmp_path / "Ha\u0308matom.png"
    assert file_from_manifest(manifest, "d\0") is None
