"""Labelled images from files, whole or cut into tiles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.dicom_files import PatientNames, heading_from_file
from plurum.errors import DataError, needs_extra
from plurum.run import Split, Table
from plurum.spellings import check_spellings
from plurum.training.data.labelled_images import LabelledImages, check_classes
from plurum.training.data.splits import SHARES, check_patients, check_splits, draw_split, stratified_splits
from plurum.training.data.tiles import ImageRegion, Tiling, frames_from_file, regions_from_file
from plurum.training.progress import show_progress

__all__ = ["LabelledFiles", "images_from_files", "undivided_images", "with_dicom_patients"]

_BLOCK = 64
_UNDIVIDED: Split = "test"


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with a class each.

    Attributes:
        name: Data source, as named by the user.
        root: Folder that contains the files.
        classes: Class names, in the order of the labels.
        paths: Paths of the files.
        labels: Class index of each file, `[files]`.
        patients: Patient of each file; an empty string if unknown.
        splits: Split of each file; empty if splits are to be drawn.
        notes: Remarks for the user, such as files that were left out, one sentence each.
        columns: Other columns of a manifest, such as the site of each file, by name.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    patients: tuple[str, ...]
    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def images_from_files(files: LabelledFiles, seed: int, tiling: Tiling | None, *, skip: bool) -> LabelledImages:
    """Return the files' images, or their tiles, divided into splits.

    Tiles have the label and the patient of their file. If the patient is unknown, the file counts as a patient, so that
    its tiles stay in one split and do not count as independent.

    Args:
        files: Image files with or without splits; missing validation or test images are drawn from train.
        seed: Random seed of the splits.
        tiling: Tile size and number for larger images; None keeps them whole.
        skip: If True, leave out unreadable images.

    Raises:
        DataError: a class is not in every split, a patient is in two, or a name has two spellings.
    """
    check_classes(files.name, files.classes)
    undivided = undivided_images(files, tiling)
    table = undivided.table
    given = table.splits if files.splits else ()
    splits, drawn = _splits(files, table.labels, table.patients, given, seed)
    return replace(undivided, table=replace(table, splits=splits), skip_unreadable=skip, notes=(*files.notes, *drawn))


def undivided_images(files: LabelledFiles, tiling: Tiling | None) -> LabelledImages:
    """Return the files' images, tiles or frames, with the splits of the files; without splits, all are in `test`.

    Raises:
        DataError: a patient has two spellings, or a file can't be read.
    """
    check_spellings(files.name, "patient", "patients", sorted(set(files.patients)))
    pictures = _find_regions(files, tiling)
    owners = np.repeat(np.arange(len(pictures)), [len(some) for some in pictures])
    flat = [picture for some in pictures for picture in some]
    patients = tuple(
        files.patients[owner]
        or (os.path.relpath(picture.path, files.root) if len(pictures[owner]) > 1 or picture.box else "")
        for owner, picture in zip(owners, flat, strict=True)
    )
    splits = tuple(files.splits[owner] for owner in owners) if files.splits else (_UNDIVIDED,) * len(flat)
    columns = {name: tuple(cells[owner] for owner in owners) for name, cells in files.columns.items()}
    table = Table(tuple(picture.source for picture in flat), files.labels[owners], patients, splits, columns)
    return LabelledImages(
        files.name,
        files.classes,
        table,
        _fingerprint(files, tiling),
        None,
        lambda index: flat[index].read_encoded(),
        notes=files.notes,
    )


def with_dicom_patients(files: LabelledFiles, names: PatientNames) -> LabelledFiles:
    """Return the files with the patients of DICOM files where none is stated.

    Raises:
        MissingExtraError: there are DICOM files, and pydicom is not installed.
        SettingsError: the key of the pseudonyms can't be read or made.
    """
    if any(heading_from_file(path) for path in files.paths):
        with needs_extra("dicom", "pydicom"):
            pass
    pairs = zip(files.paths, files.patients, strict=True)
    return replace(files, patients=tuple(patient or names.name(path) for path, patient in pairs))


def _find_regions(files: LabelledFiles, tiling: Tiling | None) -> list[list[ImageRegion]]:
    if tiling is None:
        return [frames_from_file(path) for path in files.paths]
    found: list[list[ImageRegion]] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        show_progress("looking for tissue", len(files.paths), "images") as progress,
    ):
        for start in range(0, len(files.paths), _BLOCK):
            block = files.paths[start : start + _BLOCK]
            found += pool.map(lambda path: regions_from_file(path, tiling), block)
            progress(len(block), "")
    return found


def _splits(
    files: LabelledFiles, labels: npt.NDArray[np.int64], patients: tuple[str, ...], given: tuple[Split, ...], seed: int
) -> tuple[tuple[Split, ...], list[str]]:
    """Return the split of each image, and a note if some splits were drawn although others were given."""
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
        # Size and time, as make and rsync use: reading all files would take as long as decoding them.
        name = os.path.relpath(path, files.root)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\0{patient}\0".encode())
    return digest.hexdigest()
