"""CSV manifests: a row per image. Which columns mean what, for training and for asking alike."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from plurum.errors import DataError

__all__ = ["COLUMNS", "FIRST_LINE", "IMAGE_SUFFIXES", "columns_from_manifest", "file_from_manifest", "is_there"]

# What a column may be called, whatever the case; the first that is there counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "image_path", "filepath", "file", "filename", "image", "image_id"),
    "label": ("label", "class", "target"),
    "patient": ("patient", "patient_id", "subject", "subject_id", "case_id"),
    "split": ("split", "set", "partition"),
}
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")
# Of the first image: the header is the first.
FIRST_LINE = 2


def columns_from_manifest(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of the columns we know, by our names, without blanks at their ends.

    Args:
        path: A CSV in UTF-8, with a header.
        needed: Those of `COLUMNS` that must be there.

    Raises:
        DataError: it is no CSV, has no row, or a column is missing or there twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            chosen = _chosen(header)
            known = [name.strip().lower() for name in header]
            for number in chosen.values():
                if known.count(known[number]) > 1:
                    raise DataError(f"{path} has {known.count(known[number])} columns {known[number]}; one is needed")
            missing = [f"{name} (or {', '.join(COLUMNS[name][1:])})" for name in needed if name not in chosen]
            if missing:
                had = ", ".join(header) or "none"
                raise DataError(f"{path} has no column {' and none '.join(missing)}; it has: {had}")
            cells = _cells(rows, chosen)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
    if not cells["path"]:
        raise DataError(f"{path} has no row below its header")
    return cells


def file_from_manifest(manifest: Path, name: str) -> Path | None:
    """Return the file that a row names, if it is there.

    A name is relative to the manifest, or to a folder beside it of its name (`train/` for `train.csv`); an extension
    may be left out.
    """
    for folder in (manifest.parent, manifest.parent / manifest.stem):
        for suffix in ("", *IMAGE_SUFFIXES):
            file = folder / f"{name}{suffix}"
            if is_there(file):
                return file
    return None


def is_there(file: Path) -> bool:
    """Whether a manifest's path is a file; no for one that none could have, too long, say."""
    try:
        return file.is_file()
    except OSError:
        return False


def _chosen(header: Sequence[str]) -> dict[str, int]:
    """Return the number of each column that we know."""
    theirs = {name.strip().lower(): number for number, name in reversed(list(enumerate(header)))}
    return {
        ours: theirs[names[0]]
        for ours, possible in COLUMNS.items()
        if (names := [name for name in possible if name in theirs])
    }


def _cells(rows: Iterable[list[str]], chosen: dict[str, int]) -> dict[str, list[str]]:
    """Return the cells of the chosen columns and no others: a manifest may have a million rows."""
    cells: dict[str, list[str]] = {ours: [] for ours in chosen}
    for row in rows:
        if row:
            for ours, number in chosen.items():
                cells[ours].append(row[number].strip() if number < len(row) else "")
    return cells
