"""Labelled images that lie in files, whole or cut into tiles."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.run import Split, Table
from plurum.training.data import LabelledImages, check_classes
from plurum.training.progress import shown
from plurum.training.splits import check_patients, check_splits, stratified_splits, with_validation
from plurum.training.tiles import Picture, Tiling, pictures_from_file

__all__ = ["EXTENSIONS", "LabelledFiles", "images_from_files"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
_BLOCK = 64


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with a class each.

    Attributes:
        name: As the user named them all.
        root: The folder they lie below.
        classes: Names, in the order of the labels.
        paths: One per file.
        labels: `[files]`, indices into the classes.
        patients: One per file; empty strings where none is known.
        splits: One per file; empty where they are to be drawn.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    patients: tuple[str, ...]
    splits: tuple[Split, ...] = ()


def images_from_files(files: LabelledFiles, seed: int, tiling: Tiling | None, *, skip: bool) -> LabelledImages:
    """Return the files' images, or their tiles, divided into splits.

    Tiles have the label and the patient of their file. Where no patient is known, the file stands for one, so that
    its tiles are neither divided nor taken for independent.

    Args:
        files: With splits or without; given ones without validation images have those drawn from train.
        seed: What splits are drawn from.
        tiling: How larger images are cut; None leaves them whole.
        skip: Leave out images that can't be read.

    Raises:
        DataError: a class is not in every split, or a patient in two.
    """
    check_classes(files.name, files.classes)
    pictures = _pictures(files, tiling)
    owners = np.repeat(np.arange(len(pictures)), [len(some) for some in pictures])
    flat = [picture for some in pictures for picture in some]
    labels = files.labels[owners]
    patients = tuple(
        files.patients[owner] or (os.path.relpath(picture.path, files.root) if picture.box else "")
        for owner, picture in zip(owners, flat, strict=True)
    )
    given = tuple(files.splits[owner] for owner in owners) if files.splits else ()
    splits = _splits(files, labels, patients, given, seed)
    table = Table(tuple(picture.source for picture in flat), labels, patients, splits)
    return LabelledImages(
        files.name,
        files.classes,
        table,
        _fingerprint(files, tiling),
        None,
        lambda index: flat[index].encoded(),
        skip_unreadable=skip,
    )


def _pictures(files: LabelledFiles, tiling: Tiling | None) -> list[list[Picture]]:
    if tiling is None:
        return [[Picture(path)] for path in files.paths]
    found: list[list[Picture]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, shown("looking for tissue", len(files.paths)) as progress:
        for start in range(0, len(files.paths), _BLOCK):
            block = files.paths[start : start + _BLOCK]
            found += pool.map(lambda path: pictures_from_file(path, tiling), block)
            progress(len(block), "")
    return found


def _splits(
    files: LabelledFiles,
    labels: npt.NDArray[np.int64],
    patients: tuple[str, ...],
    given: tuple[Split, ...],
    seed: int,
) -> tuple[Split, ...]:
    if not given:
        return stratified_splits(labels, patients, files.classes, seed)
    check_patients(patients, given)
    if "validation" not in given:
        return with_validation(labels, patients, given, files.classes, seed)
    check_splits(labels, patients, given, files.classes)
    return given


def _fingerprint(files: LabelledFiles, tiling: Tiling | None) -> str:
    digest = hashlib.sha256(f"{tiling}".encode() if tiling else b"")
    for path, label, patient in zip(files.paths, files.labels, files.patients, strict=True):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror}") from error
        # As make and rsync judge whether a file changed: reading all of them would take as long as decoding.
        name = os.path.relpath(path, files.root)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\0{patient}\0".encode())
    return digest.hexdigest()
