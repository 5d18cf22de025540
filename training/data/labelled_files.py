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
from plurum.spellings import check_spellings
from plurum.training.data.labelled_images import LabelledImages, check_classes
from plurum.training.data.splits import SHARES, check_patients, check_splits, draw_split, stratified_splits
from plurum.training.data.tiles import Picture, Tiling, pictures_from_file
from plurum.training.progress import shown

__all__ = ["LabelledFiles", "images_from_files"]

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
        notes: What a reader of the data should know, such as what was left out, a sentence each.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    patients: tuple[str, ...]
    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()


def images_from_files(files: LabelledFiles, seed: int, tiling: Tiling | None, *, skip: bool) -> LabelledImages:
    """Return the files' images, or their tiles, divided into splits.

    Tiles have the label and the patient of their file. Where no patient is known, the file stands for one, so that
    its tiles are neither divided nor taken for independent.

    Args:
        files: With splits or without; where validation or test images are missing, they are drawn from train.
        seed: What splits are drawn from.
        tiling: How larger images are cut; None leaves them whole.
        skip: Leave out images that can't be read.

    Raises:
        DataError: a class is not in every split, a patient in two, or a name is spelled in two ways.
    """
    check_classes(files.name, files.classes)
    try:
        check_spellings(files.name, "patient", "patients", sorted(set(files.patients)))
    except ValueError as error:
        raise DataError(str(error)) from error
    pictures = _pictures(files, tiling)
    owners = np.repeat(np.arange(len(pictures)), [len(some) for some in pictures])
    flat = [picture for some in pictures for picture in some]
    labels = files.labels[owners]
    patients = tuple(
        files.patients[owner] or (os.path.relpath(picture.path, files.root) if picture.box else "")
        for owner, picture in zip(owners, flat, strict=True)
    )
    given = tuple(files.splits[owner] for owner in owners) if files.splits else ()
    splits, drawn = _splits(files, labels, patients, given, seed)
    table = Table(tuple(picture.source for picture in flat), labels, patients, splits)
    return LabelledImages(
        files.name,
        files.classes,
        table,
        _fingerprint(files, tiling),
        None,
        lambda index: flat[index].encoded(),
        skip_unreadable=skip,
        notes=(*files.notes, *drawn),
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
) -> tuple[tuple[Split, ...], list[str]]:
    """Return the split of each image, and a note where some were drawn though others were given."""
    missing = [split for split in SHARES if split not in given]
    if not given or missing == ["validation", "test"]:
        note = [f"no images are given for {' and '.join(missing)}: all splits are drawn"] if given else []
        return stratified_splits(labels, patients, files.classes, seed), note
    check_patients(patients, given)
    if len(missing) == 1 and missing != ["train"]:
        note = [f"no images are given for {missing[0]}: a fifth of each class of train is drawn"]
        return draw_split(labels, patients, given, files.classes, seed, missing[0]), note
    check_splits(labels, patients, given, files.classes)
    return given, []


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
