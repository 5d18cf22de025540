"""The plan of a job: its images in parts, and what their predictions depend on. A job that resumes reads it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from plurum.errors import OutputError
from plurum.score.destination import Destination
from plurum.score.reading import file_system
from plurum.score.sources import ParquetFiles, list_images, parquet_files

__all__ = ["Part", "Plan", "open_plan"]

_VERSION = 1
# Rows of a large row group are read from its start, so that more parts of it would read too much in vain.
_PARTS_OF_GROUP = 8


class Part(NamedTuple):
    """Rows of one Parquet file, which become one file of results.

    Attributes:
        number: Number of the part, from 0.
        file: Index of the file.
        start: First row.
        stop: Row after the last.
    """

    number: int
    file: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What a job does.

    Attributes:
        source: Source, as given.
        ensemble: Hash of what decides on the predictions.
        files: Parquet files of images, or of their list: paths or addresses.
        columns: Name of the files' column by what it holds: `path`, `bytes`, `patient` and `label`.
        parts: Parts as `[file, start, stop]`.
        version: Version of this format.
    """

    source: str
    ensemble: str
    files: list[str]
    columns: dict[str, str]
    parts: list[list[int]]
    version: int = _VERSION

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(stop - start for _, start, stop in self.parts)

    def part(self, number: int) -> Part:
        """Return a part by its number."""
        return Part(number, *self.parts[number])


def open_plan(destination: Destination, source: str, ensemble: str, part_rows: int) -> Plan:
    """Return the plan in the destination, or make one and write it.

    Args:
        destination: Folder of the results.
        source: Folder, pattern, manifest, Parquet files or address.
        ensemble: Hash of what decides on the predictions.
        part_rows: Number of images in a part.

    Raises:
        DataError: the source has no images, or can't be read.
        OutputError: the destination has results of another source or ensemble, or of another version of Plurum.
    """
    stated = destination.read_plan()
    if stated is None:
        if destination.parts():
            raise OutputError(f"{destination.location}: expected an empty folder, got one with other Parquet files.")
        plan = _new_plan(destination, source, ensemble, part_rows)
        destination.write_plan(asdict(plan))
        return plan
    for name, expected in (("version", _VERSION), ("source", source), ("ensemble", ensemble)):
        if stated.get(name) != expected:
            raise OutputError(
                f"--out: expected results of {name} {expected}, got those of {stated.get(name)}. Name another folder, "
                "or start again with --fresh."
            )
    return Plan(**stated)


def _new_plan(destination: Destination, source: str, ensemble: str, part_rows: int) -> Plan:
    files = parquet_files(source)
    if files and "bytes" in files.columns:
        return Plan(source, ensemble, files.paths, files.columns, _parts_of(files, part_rows))
    columns, count = list_images(source, files, destination, part_rows)
    parts = [[0, start, min(start + part_rows, count)] for start in range(0, count, part_rows)]
    return Plan(source, ensemble, [destination.listing], {name: name for name in columns}, parts)


def _parts_of(files: ParquetFiles, part_rows: int) -> list[list[int]]:
    """Return parts of about `part_rows` rows: several small row groups, or a part of a large one."""
    parts: list[list[int]] = []
    for index, name in enumerate(files.paths):
        start, stop = 0, 0
        for rows in _group_rows(name):
            if stop - start + rows > part_rows and stop > start:
                parts.append([index, start, stop])
                start = stop
            stop += rows
            step = max(part_rows, -(-rows // _PARTS_OF_GROUP))
            while stop - start > step:
                parts.append([index, start, start + step])
                start += step
        if stop > start:
            parts.append([index, start, stop])
    return parts


def _group_rows(name: str) -> list[int]:
    """Return the number of rows in each row group of a Parquet file."""
    from pyarrow import parquet

    system, path = file_system(name)
    with system.open(path, "rb") as file:
        metadata: Any = parquet.read_metadata(file)
    return [metadata.row_group(one).num_rows for one in range(metadata.num_row_groups)]
