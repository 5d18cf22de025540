"""Folder of a run, written by training and fitting and read by all later stages.

RUN/run.json                        data source, settings and seed; marks the folder as a run
RUN/data/pixels.npy                 uint8 [images, height, width, 3], every image at the members' input size
RUN/data/items.csv                  index,source,label,patient,split, fold with --folds, and manifest:NAME for each
                                    other column of a manifest: one row per image, in the same order
RUN/data/contract.json              classes, image spec and fingerprint
RUN/data/report.json                counts, sizes, duplicates and leaks of the images
RUN/members/NAME/                   checkpoint.safetensors, member.json, history.csv; detector.safetensors (written by
                                    fit)
RUN/unfinished/NAME.pt              training state of an unfinished member
RUN/tensorboard/NAME/               TensorBoard logs, with --tensorboard
RUN/ensemble.json                   the fitted ensemble (written by fit)
RUN/unlabelled/                     pixels.npy and groups.npy: images of fit --unlabelled, and their patients as numbers
RUN/report/                         reports of fit, evaluate and distill
RUN/sites/SITE/                     ensemble.json calibrated on a site's images, calibration.json about it, and
                                    reference.npz: images of the site's outlier reference, if it has its own
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plurum.errors import MetadataError, OutputError
from plurum.files import check_folder, sha256_of
from plurum.regular_files import check_regular, open_regular
from plurum.spec import (
    Classes,
    Ensemble,
    ImageSpec,
    Member,
    Metadata,
    Sha256,
    Text,
    read_ensemble,
    read_member,
    read_metadata,
)

__all__ = [
    "FOLD_COLUMN",
    "OTHER_COLUMN",
    "DataMetadata",
    "Run",
    "Split",
    "Table",
    "UnlabelledImages",
    "number_patients",
]

# Begins the names of a manifest's other columns in items.csv.
OTHER_COLUMN = "manifest:"
# Column of items.csv that runs with folds have.
FOLD_COLUMN = "fold"
Split = Literal["train", "validation", "test", "calibration", "certification"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test", "calibration", "certification")


class DataMetadata(Metadata):
    """Metadata of `RUN/data`, stored in its contract.json.

    Attributes:
        version: Version of this format.
        source: Data source as given to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        source_fingerprint: SHA-256 that tells `plurum train`, without decoding, that the source is unchanged; None if
            another program wrote the folder.
        classes: Class names, in the order of the labels.
        image: Image spec that the pixels were prepared by.
    """

    version: Literal[1] = 1
    source: Text
    fingerprint: Sha256
    source_fingerprint: Sha256 | None = None
    classes: Classes
    image: ImageSpec


@dataclass(frozen=True)
class Table:
    """Labels, patients and splits, one row per image in the order of `pixels.npy`.

    Attributes:
        sources: Source of each image: a file, or a name such as `digits/17`.
        labels: Class indices, int64 `[images]`.
        patients: Patient of each image; empty if unknown.
        splits: Split of each image: `train`, `validation`, `test`, or set aside as `calibration` or `certification`.
        columns: Other columns of the manifest, such as the site of each image, by name.
        folds: Fold of each training image, from 1, and 0 for other images, int64 `[images]`; None without folds.
    """

    sources: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    patients: tuple[str, ...]
    splits: tuple[Split, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: npt.NDArray[np.int64] | None = None

    @property
    def number_of_folds(self) -> int | None:
        """Number of folds of the training images; None without folds."""
        return None if self.folds is None else int(self.folds.max())

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the indices of a split's images, ascending, int64."""
        return np.flatnonzero(np.asarray(self.splits) == split)

    def select(self, rows: npt.NDArray[np.int64]) -> Table:
        """Return a table of the rows with these indices, in their order."""
        return Table(
            sources=tuple(self.sources[row] for row in rows),
            labels=self.labels[rows],
            patients=tuple(self.patients[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
            columns={name: tuple(cells[row] for row in rows) for name, cells in self.columns.items()},
            folds=None if self.folds is None else self.folds[rows],
        )


@dataclass(frozen=True)
class UnlabelledImages:
    """Images without labels, of patients that the run's table does not have.

    Attributes:
        pixels: Images at the members' input size, uint8 `[images, height, width, 3]`.
        groups: Group of each image, int64 `[images]`; images of one patient share a group.
    """

    pixels: npt.NDArray[np.uint8]
    groups: npt.NDArray[np.int64]


def number_patients(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a group number for each image, from 0: one per patient, and one per image of an unknown patient."""
    numbers: dict[str | int, int] = {}
    groups = [numbers.setdefault(patient or row, len(numbers)) for row, patient in enumerate(patients)]
    return np.array(groups, dtype=np.int64)


class Run:
    """Folder of a run.

    Args:
        path: Path of the folder.

    Attributes:
        path: Path of the folder.
        settings_file: Path of run.json, which marks a folder as a run.
        data_folder: Path of the folder with pixels, items and their metadata.
        ensemble_file: Path of ensemble.json.
        report_folder: Path of the folder with reports.
        unlabelled_folder: Path of the folder with images that certify a cascade without labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "run.json"
        self.data_folder = path / "data"
        self.ensemble_file = path / "ensemble.json"
        self.report_folder = path / "report"
        self.unlabelled_folder = path / "unlabelled"

    def member_folder(self, name: str) -> Path:
        """Return the folder of the member `name`."""
        return self.path / "members" / name

    def checkpoint(self, member: Member) -> Path:
        """Return the path of a member's weights."""
        return self.member_folder(member.name) / member.checkpoint

    def detector(self, name: str) -> Path:
        """Return the file of a member's detector of outliers; it exists only if the fit wrote one."""
        return self.member_folder(name) / "detector.safetensors"

    def claim(self) -> None:
        """Check that the folder is missing, empty or a run.

        Raises:
            OutputError: the path is a file, or the folder holds other files.
        """
        check_folder(self.path, "the run")
        # Ignore temporary files of a killed process.
        temporary = f".{self.settings_file.name}."
        if (
            self.path.is_dir()
            and not self.settings_file.is_file()
            and any(not path.name.startswith(temporary) for path in self.path.iterdir())
        ):
            raise OutputError(f"{self.path} is not a run and not empty. Choose a new or empty folder.")

    def check(self) -> None:
        """Check that the folder is a run.

        Raises:
            MetadataError: the folder is not a run.
        """
        if not self.settings_file.is_file():
            raise MetadataError(
                f"{self.path} is not a run: it has no run.json. Create a run: plurum train DATA --out {self.path}"
            )

    def members(self) -> tuple[Member, ...]:
        """Return the finished members, by name.

        Raises:
            MetadataError: the folder is not a run, has no finished member, or has an invalid `member.json`.
        """
        self.check()
        # Hidden folders are members being written, or left by a power cut.
        files = sorted((self.path / "members").glob("[!.]*/member.json"))
        if not files:
            raise MetadataError(
                f"{self.path} has no finished member. Finish the training: plurum train DATA --out {self.path}"
            )
        return tuple(read_member(file) for file in files)

    def site_folder(self, site: str) -> Path:
        """Return the folder of the calibration at a site."""
        return self.path / "sites" / site

    def site_reference(self, site: str) -> Path:
        """Return the file with the images of a site's outlier reference; it exists only if the site has its own."""
        return self.site_folder(site) / "reference.npz"

    def ensemble(self, site: str | None = None) -> Ensemble:
        """Return the fitted ensemble, calibrated at `site` if that is not None.

        Raises:
            MetadataError: the folder is not a run, is not fitted yet, or has an invalid ensemble.json; or the site is
                unknown, or was calibrated with another fit.
        """
        self.check()
        if not self.ensemble_file.is_file():
            raise MetadataError(f"{self.path} has no ensemble.json. Fit the run: plurum fit {self.path}")
        return read_ensemble(self.ensemble_file) if site is None else self._ensemble_at(site)

    def _ensemble_at(self, site: str) -> Ensemble:
        known = sorted(file.parent.name for file in self.path.glob("sites/[!.]*/ensemble.json"))
        calibrate = f"plurum calibrate {self.path} --on SITE.csv --name {site}"
        if site not in known:
            raise MetadataError(
                f"--site: expected a calibrated site of {self.path} ({', '.join(known) or 'none'}), got {site!r}. "
                f"Calibrate it: {calibrate}"
            )
        ensemble = read_ensemble(self.site_folder(site) / "ensemble.json")
        if ensemble.site is None or ensemble.site.fit != sha256_of(self.ensemble_file):
            raise MetadataError(
                f"--site: expected a calibration of {self.ensemble_file}, got one of another fit in "
                f"{self.site_folder(site)}. Calibrate it again: {calibrate}"
            )
        return ensemble

    def data(self) -> DataMetadata:
        """Return the metadata of the data folder.

        Raises:
            MetadataError: the metadata are missing or invalid.
        """
        return read_metadata(self.data_folder / "contract.json", DataMetadata, "valid data metadata")

    def table(self) -> Table:
        """Return labels, patients and splits of all images.

        Raises:
            MetadataError: the table is missing, names an unknown class or split, or does not have one row per image in
                the order of the pixels.
        """
        classes = {name: index for index, name in enumerate(self.data().classes)}
        path = self.data_folder / "items.csv"
        try:
            with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
            for number, row in enumerate(rows):
                if None in row.values():
                    raise ValueError(f"row {number}, counted from 0, has fewer cells than the header")
            self._check_rows(path, [row["index"] for row in rows])
            return Table(
                sources=tuple(row["source"] for row in rows),
                labels=np.array([classes[row["label"]] for row in rows], dtype=np.int64),
                patients=tuple(row["patient"] for row in rows),
                splits=tuple(_split(row["split"]) for row in rows),
                columns={
                    name.removeprefix(OTHER_COLUMN): tuple(row[name] for row in rows)
                    for name in reader.fieldnames or ()
                    if name.startswith(OTHER_COLUMN)
                },
                folds=_folds(rows) if FOLD_COLUMN in (reader.fieldnames or ()) else None,
            )
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise MetadataError(f"{path} can't be read: {error!r}") from error

    def _check_rows(self, path: Path, indices: list[str]) -> None:
        """Check that the rows are in the order of the pixels; a spreadsheet may have sorted them."""
        for number, index in enumerate(indices):
            if index != str(number):
                raise MetadataError(
                    f"{path}: expected index {number} in row {number}, counted from 0, got {index!r}. Sort the rows by "
                    f"index, as in pixels.npy."
                )
        images = len(self.pixels())
        if len(indices) != images:
            raise MetadataError(
                f"{path}: expected a row for each of the {images:,} images in pixels.npy, got {len(indices):,} rows"
            )

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return all pixels, uint8 `[images, height, width, 3]`, as a read-only memory map.

        Raises:
            MetadataError: the file is missing or corrupt.
        """
        path = self.data_folder / "pixels.npy"
        pixels = _read_array(path)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise MetadataError(
                f"{path}: expected uint8 [images, height, width, 3], got {pixels.dtype} {list(pixels.shape)}"
            )
        return pixels

    def unlabelled(self) -> UnlabelledImages | None:
        """Return the images that certify a cascade without labels; None if the fit had none.

        Raises:
            MetadataError: the files are corrupt.
        """
        if not self.unlabelled_folder.is_dir():
            return None
        pixels, groups = (_read_array(self.unlabelled_folder / f"{name}.npy") for name in ("pixels", "groups"))
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or groups.dtype != np.int64 or groups.shape != pixels.shape[:1]:
            raise MetadataError(f"{self.unlabelled_folder}: expected images and their patients. Fit the run again.")
        return UnlabelledImages(pixels, np.asarray(groups))


def _read_array(path: Path) -> npt.NDArray[Any]:
    """Return an array of a `.npy` file as a read-only memory map.

    Raises:
        MetadataError: the file is missing or corrupt.
    """
    try:
        check_regular(path)
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise MetadataError(f"{path} can't be read: {error.strerror or error}") from error
    # On a corrupt header, NumPy raises more than ValueError.
    except Exception as error:
        raise MetadataError(f"{path} can't be read: {error}") from error
    return array


def _folds(rows: Sequence[Mapping[str, str]]) -> npt.NDArray[np.int64]:
    return np.array([int(row[FOLD_COLUMN]) for row in rows], dtype=np.int64)


def _split(text: str) -> Split:
    for split in _SPLITS:
        if text == split:
            return split
    raise ValueError(f"unknown split {text!r}")
