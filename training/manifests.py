"""CSV manifests: one row per image, with its label and, where they are known, its patient and split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from plurum.errors import DataError
from plurum.manifests import FIRST_LINE, columns_from_manifest, file_from_manifest
from plurum.run import Split
from plurum.training.labelled_files import LabelledFiles

__all__ = ["files_from_manifest"]

_NEEDED = ("path", "label")
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def files_from_manifest(path: Path) -> LabelledFiles:
    """Return the image files that a CSV lists, in its order.

    Paths and the columns' names are as in `plurum.manifests`; other columns are ignored.

    Raises:
        DataError: a column is missing, or a row has no label, an unknown split or an image that is not there or listed
            twice; the first is named, the others counted.
    """
    columns = columns_from_manifest(path, _NEEDED)
    lines = range(FIRST_LINE, FIRST_LINE + len(columns["path"]))
    for name in _NEEDED:
        _refuse(path, lines, (f"has no {name}" if not cell else "" for cell in columns[name]))
    words = columns.get("split", [])
    _refuse(path, lines, (_split_fault(word) for word in words))
    found = [_file(path, name) for name in columns["path"]]
    missing = (f"names {name}, which is not there" for name in columns["path"])
    _refuse(path, lines, ("" if file else fault for file, fault in zip(found, missing, strict=True)))
    files = [file for file in found if file]
    _refuse(path, lines, _repeated(files, columns["path"]))
    classes = tuple(sorted(set(columns["label"])))
    index = {name: number for number, name in enumerate(classes)}
    return LabelledFiles(
        name=str(path),
        root=path.parent,
        classes=classes,
        paths=tuple(files),
        labels=np.array([index[name] for name in columns["label"]], dtype=np.int64),
        patients=tuple(columns.get("patient", [""] * len(files))),
        splits=tuple(_SPLITS[word.lower()] for word in words),
    )


def _file(manifest: Path, name: str) -> Path | None:
    """Return the file that a row names, if it is there."""
    if not name.isprintable():
        raise DataError(f"{manifest} names {name!a}, with unprintable characters; rename it")
    return file_from_manifest(manifest, name)


def _split_fault(word: str) -> str:
    if word.lower() in _SPLITS:
        return ""
    return f"has the split {word!r}; train, validation (or val) and test are known"


def _repeated(files: Sequence[Path], names: Sequence[str]) -> Iterable[str]:
    seen: set[Path] = set()
    for file, name in zip(files, names, strict=True):
        real = file.resolve()
        yield f"lists {name} a second time" if real in seen else ""
        seen.add(real)


def _refuse(path: Path, lines: Iterable[int], faults: Iterable[str]) -> None:
    """Raise an error that names the first fault and counts the others; an empty text is none."""
    found = [(line, fault) for line, fault in zip(lines, faults, strict=False) if fault]
    if found:
        line, fault = found[0]
        more = f"; and {len(found) - 1:,} more like it" if len(found) > 1 else ""
        raise DataError(f"{path}: line {line} {fault}{more}")
