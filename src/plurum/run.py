"""The folder that training fills and everything after it reads.

RUN/run.json                        what was asked for: data, settings, seed (marks the folder as ours)
RUN/data/pixels.npy                 uint8 [images, height, width, 3], every image as members see it
RUN/data/items.csv                  index,source,label,patient,split: one row per image, in the same order
RUN/data/contract.json              classes, image spec and fingerprint
RUN/data/report.json                what was found out about the images: counts, sizes, duplicates, leaks
RUN/members/NAME/                   checkpoint.safetensors, member.json, history.csv
RUN/unfinished/NAME.pt              the state of a training that has not ended yet
RUN/tensorboard/NAME/               if asked for: what TensorBoard shows
RUN/ensemble.json                   how the members vote (written by fit)
RUN/report/                         for people
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.errors import ContractError, OutputError
from plurum.regular_files import check_regular, open_regular, read_regular
from plurum.spec import Classes, Contract, Ensemble, ImageSpec, Member, Sha256, Text, read_ensemble, read_member

__all__ = ["DataContract", "Run", "Split", "Table"]

Split = Literal["train", "validation", "test"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class DataContract(Contract):
    """What lies in `RUN/data`.

    Attributes:
        source: As it was named to `plurum train`.
        fingerprint: SHA-256 over pixels and labels.
        source_fingerprint: SHA-256 by which `plurum train` knows that the source is unchanged, without decoding it;
            None where another program filled the folder.
        classes: Names, in the order of the labels.
        image: How the pixels were made.
    """

    version: Literal[1] = 1
    source: Text
    fingerprint: Sha256
    source_fingerprint: Sha256 | None = None
    classes: Classes
    image: ImageSpec


@dataclass(frozen=True)
class Table:
    """One row per image, in the order of `pixels.npy`.

    Attributes:
        sources: Where each came from: a file, or a name such as `digits/17`.
        labels: `[images]`, int64, indices into the classes.
        patients: One per image; empty strings where none is known.
        splits: `train`, `validation` or `test`, one per image.
    """

    sources: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    patients: tuple[str, ...]
    splits: tuple[Split, ...]

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the indices of a split's images, ascending, int64."""
        return np.flatnonzero(np.asarray(self.splits) == split)

    def taken(self, rows: npt.NDArray[np.int64]) -> Table:
        """Return the rows of these indices, in their order."""
        return Table(
            sources=tuple(self.sources[row] for row in rows),
            labels=self.labels[rows],
            patients=tuple(self.patients[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
        )


class Run:
    """A run's folder, by its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def settings_file(self) -> Path:
        """Marks a folder as a run."""
        return self.path / "run.json"

    @property
    def data_folder(self) -> Path:
        """Pixels, items and their contract."""
        return self.path / "data"

    @property
    def ensemble_file(self) -> Path:
        """How the members vote."""
        return self.path / "ensemble.json"

    @property
    def report_folder(self) -> Path:
        """For people."""
        return self.path / "report"

    def member_folder(self, name: str) -> Path:
        """Where the member `name` lies."""
        return self.path / "members" / name

    def checkpoint(self, member: Member) -> Path:
        """The file with a member's weights."""
        return self.member_folder(member.name) / member.checkpoint

    def claim(self) -> None:
        """Make sure that the folder is free or a run already.

        Raises:
            OutputError: it is a file, or holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; name a new folder, or one that holds a run")
        # What a process was writing when it was killed does not count.
        begun = f".{self.settings_file.name}."
        if (
            self.path.is_dir()
            and not self.settings_file.is_file()
            and any(not path.name.startswith(begun) for path in self.path.iterdir())
        ):
            raise OutputError(f"{self.path} holds something else than a run; name a new or an empty folder")

    def check(self) -> None:
        """Make sure that the folder is a run.

        Raises:
            ContractError: it is none.
        """
        if not self.settings_file.is_file():
            raise ContractError(
                f"{self.path} is no run: it has no run.json; make one with: plurum train DATA --out {self.path}"
            )

    def members(self) -> tuple[Member, ...]:
        """Return the finished members, by name.

        Raises:
            ContractError: the folder is no run, has no finished member, or one with a broken `member.json`.
        """
        self.check()
        # Hidden folders are members that are being written, or were when the power went.
        files = sorted((self.path / "members").glob("[!.]*/member.json"))
        if not files:
            raise ContractError(
                f"{self.path} has no finished member; finish it with: plurum train DATA --out {self.path}"
            )
        return tuple(read_member(file) for file in files)

    def ensemble(self) -> Ensemble:
        """Return the fitted ensemble.

        Raises:
            ContractError: the folder is no run, or not fitted yet, or its ensemble.json is broken.
        """
        self.check()
        if not self.ensemble_file.is_file():
            raise ContractError(f"{self.path} has no ensemble.json; write it with: plurum fit {self.path}")
        return read_ensemble(self.ensemble_file)

    def data(self) -> DataContract:
        """Return what lies in the data folder.

        Raises:
            ContractError: nothing, or something broken.
        """
        path = self.data_folder / "contract.json"
        try:
            return DataContract.model_validate_json(read_regular(path))
        except OSError as error:
            raise ContractError(f"{path} can't be read: {error.strerror}") from error
        except ValidationError as error:
            raise ContractError(f"{path} is no data contract of version 1: {error.errors()[0]['msg']}") from error

    def table(self) -> Table:
        """Return labels, patients and splits of all images.

        Raises:
            ContractError: the table is missing, names a class or a split that there isn't, or has not one row per image
                in the order of the pixels.
        """
        classes = {name: index for index, name in enumerate(self.data().classes)}
        path = self.data_folder / "items.csv"
        try:
            with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for number, row in enumerate(rows):
                if None in row.values():
                    raise ValueError(f"row {number}, counted from 0, has fewer cells than the header")
            self._check_rows(path, [row["index"] for row in rows])
            return Table(
                sources=tuple(row["source"] for row in rows),
                labels=np.array([classes[row["label"]] for row in rows], dtype=np.int64),
                patients=tuple(row["patient"] for row in rows),
                splits=tuple(_split(row["split"]) for row in rows),
            )
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise ContractError(f"{path} can't be read: {error!r}") from error

    def _check_rows(self, path: Path, indices: list[str]) -> None:
        """Make sure that a table's rows are those of the pixels: sorted by a spreadsheet, they would be mixed up."""
        for number, index in enumerate(indices):
            if index != str(number):
                raise ContractError(
                    f"{path} has the index {index!r} in its row {number}, counted from 0; rows must be in the order of "
                    f"pixels.npy: sort them by index"
                )
        images = len(self.pixels())
        if len(indices) != images:
            raise ContractError(
                f"{path} has {len(indices):,} rows, and pixels.npy {images:,} images; one each is needed"
            )

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return all pixels, `[images, height, width, 3]`, mapped from the file and not to be written to.

        Raises:
            ContractError: the file is missing or broken.
        """
        path = self.data_folder / "pixels.npy"
        try:
            check_regular(path)
            pixels: npt.NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
        except OSError as error:
            raise ContractError(f"{path} can't be read: {error.strerror or error}") from error
        # On a broken header, NumPy stumbles over more than a ValueError.
        except Exception as error:
            raise ContractError(f"{path} can't be read: {error}") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ContractError(
                f"{path} holds {pixels.dtype} {list(pixels.shape)}; uint8 [images, height, width, 3] is needed"
            )
        return pixels


def _split(text: str) -> Split:
    for split in _SPLITS:
        if text == split:
            return split
    raise ValueError(f"no split called {text!r}")
