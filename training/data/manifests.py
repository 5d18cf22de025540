"""Read CSV manifests: one row per image, with its label and optionally its patient and split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from plurum.errors import DataError
from plurum.manifests import file_from_manifest, read_manifest_table
from plurum.run import Split
from plurum.training.data.labelled_files import LabelledFiles
from plurum.training.data.splits import HELD_OUT, split_from_word

__all__ = ["files_from_manifest"]

_NEEDED = ("path", "label")


def files_from_manifest(path: Path) -> LabelledFiles:
    """Return the image files that a CSV file lists, in its order.

    Paths and column names follow `plurum.manifests`; other columns are kept, to evaluate by group.

    Raises:
        DataError: a column is missing, or a row has no label, an unknown split, or an image that is missing or listed
            twice. The message names the first row and counts the others.
    """
    table = read_manifest_table(path, _NEEDED, with_others=True)
    columns, lines = table.columns, table.lines
    for name in _NEEDED:
        _refuse(path, lines, (f"has no {name}" if not cell else "" for cell in columns[name]))
    words = columns.get("split", [])
    _refuse(path, lines, (_split_fault(word) for word in words))
    found = [_file(path, name) for name in columns["path"]]
    _refuse(
        path,
        lines,
        ("" if file else _missing_text(path, name) for file, name in zip(found, columns["path"], strict=True)),
    )
    files = [file for file in found if file]
    _refuse(path, lines, _duplicate_faults(files, columns["path"], columns["label"]))
    classes = tuple(sorted(set(columns["label"])))
    index = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(
        name=str(path),
        root=path.parent,
        classes=classes,
        paths=tuple(files),
        labels=np.array([index[name] for name in columns["label"]], dtype=np.int64),
        patients=tuple(columns.get("patient", [""] * len(files))),
        splits=tuple(split for word in words if (split := _split(word))),
        columns={name: tuple(cells) for name, cells in table.others.items()},
    )


def _file(manifest: Path, name: str) -> Path | None:
    """Return the file that a row names, or None if it does not exist."""
    if not name.isprintable():
        raise DataError(f"{manifest} names {name!a}, with unprintable characters; rename it")
    return file_from_manifest(manifest, name)


def _split(word: str) -> Split | None:
    """Return the split of a cell. Folders with the names of the held-out splits may be classes, and cells can't."""
    return split_from_word(word) or next((split for split in HELD_OUT if split == word.strip().lower()), None)


def _split_fault(word: str) -> str:
    if _split(word):
        return ""
    return f"has the split {word!r}; expected train, validation (or val), test, calibration or certification"


def _missing_text(manifest: Path, name: str) -> str:
    # `Path.exists` raises an error for names that no file can have.
    if os.path.exists(manifest.parent / name):  # noqa: PTH110
        return f"names {name}, which is not a regular file"
    hint = "; separate folders by /, not by \\" if "\\" in name else ""
    return f"names {name}, which does not exist{hint}"


def _duplicate_faults(files: Sequence[Path], names: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    seen: dict[Path, str] = {}
    for file, name, label in zip(files, names, labels, strict=True):
        real = file.resolve()
        if real not in seen:
            yield ""
        elif seen[real] == label:
            yield f"lists {name} a second time"
        else:
            yield f"lists {name} a second time, as {label!r} and before as {seen[real]!r}"
        seen.setdefault(real, label)


def _refuse(path: Path, lines: Iterable[int], faults: Iterable[str]) -> None:
    """Raise an error that names the first fault and counts the others; an empty text means no fault."""
    found = [(line, fault) for line, fault in zip(lines, faults, strict=False) if fault]
    if found:
        line, fault = found[0]
        more = f"; and {len(found) - 1:,} more like it" if len(found) > 1 else ""
        raise DataError(f"{path}: line {line} {fault}{more}")
