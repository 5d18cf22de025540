"""Images to score: a folder, pattern or manifest, an fsspec address, or Parquet files of paths or of images.

Parquet files of images are read where they lie. Everything else becomes a list of images in the destination, so that a
job that resumes has the same images in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from plurum.client.bulk.formats import arrow_text
from plurum.client.bulk.listing import listing_from_names
from plurum.errors import DataError
from plurum.file_trees import is_image_name, is_leftover
from plurum.images.image_formats import IMAGE_SUFFIXES
from plurum.manifests import COLUMNS, read_manifest_table
from plurum.remote_files import storage_errors
from plurum.score.destination import Destination
from plurum.score.reading import file_system, is_address

__all__ = ["ParquetFiles", "list_images", "parquet_files"]

# Names of the column of encoded images: that of Ray's read_binary_files, and that of Spark's binaryFile.
_BYTES = ("bytes", "content")
_PARQUET = ".parquet"


class _ListedImage(NamedTuple):
    """One image of a list; patient and label are empty if unknown."""

    path: str
    patient: str = ""
    label: str = ""


class ParquetFiles(NamedTuple):
    """Parquet files of one schema.

    Attributes:
        paths: Paths or addresses, sorted.
        columns: Name of the column by what it holds: `path`, `bytes`, `patient` and `label`.
    """

    paths: list[str]
    columns: dict[str, str]


def parquet_files(source: str) -> ParquetFiles | None:
    """Return the Parquet files of a source: one file, or a folder that holds them; None if it holds none.

    Raises:
        DataError: they have neither a column of paths nor one of encoded images.
        SettingsError: fsspec can't open the address.
    """
    if not is_address(source):
        return _parquet_files(source)
    with storage_errors(source):
        return _parquet_files(source)


def _parquet_files(source: str) -> ParquetFiles | None:
    system, root = file_system(source if is_address(source) else str(Path(source).absolute()))
    if root.lower().endswith(_PARQUET) and not system.isdir(root):
        found = [root] if system.exists(root) else []
    elif is_address(source) or Path(source).is_dir():
        found = sorted(
            one
            for one in system.ls(root, detail=False)
            if one.lower().endswith(_PARQUET) and not is_leftover(_name(one))
        )
    else:
        return None
    if not found:
        return None
    return ParquetFiles([_address(system, one, source) for one in found], _columns_of(system, found[0]))


def list_images(source: str, files: ParquetFiles | None, destination: Destination, rows: int) -> tuple[list[str], int]:
    """Write the list of images to the destination, `rows` in each row group.

    Args:
        source: A source that is not Parquet files of images.
        files: Parquet files of paths; None for other sources.
        destination: Folder of the results.
        rows: Number of images in a row group.

    Returns:
        The columns of the list, and the number of images.

    Raises:
        DataError: there are no images, or the source can't be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.string()) for name in _ListedImage._fields])
    images, count, has = _images_of(source, files), 0, {"path"}
    with destination.writing("_plan/images.parquet") as path, parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(images, rows)):
            columns = dict(zip(_ListedImage._fields, zip(*group, strict=True), strict=True))
            has |= {name for name, values in columns.items() if any(values)}
            arrays = [pa.array(list(map(arrow_text, values)), pa.string()) for values in columns.values()]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=rows)
            count += len(group)
        if not count:
            raise DataError(f"{source}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none.")
    return [name for name in _ListedImage._fields if name in has], count


def _images_of(source: str, files: ParquetFiles | None) -> Iterator[_ListedImage]:
    if files:
        return _from_parquet(files)
    if not is_address(source):
        listing = listing_from_names([source])
        return (
            _ListedImage(str(Path(path).absolute()), listing.patients.get(place, ""), listing.labels.get(place, ""))
            for path, place in listing.places.items()
        )
    return _from_manifest(source) if source.lower().endswith(".csv") else _from_address(source)


def _from_address(source: str) -> Iterator[_ListedImage]:
    """Yield the images below an address, folder by folder, in sorted order."""
    with storage_errors(source):
        system, root = file_system(source)
        if system.isfile(root):
            yield _ListedImage(source)
            return
        for folder, folders, names in system.walk(root, on_error="raise"):
            folders[:] = sorted(name for name in folders if not is_leftover(name))
            for name in sorted(names):
                if is_image_name(name):
                    yield _ListedImage(_address(system, f"{folder.rstrip('/')}/{name}", source))


def _from_manifest(source: str) -> Iterator[_ListedImage]:
    """Yield the images of a manifest at an address; their names are relative to it, or addresses."""
    system, path = file_system(source)
    with tempfile.TemporaryDirectory(prefix="plurum_score_") as folder:
        manifest = Path(folder, _name(path))
        with storage_errors(source):
            system.get_file(path, str(manifest))
        table = read_manifest_table(manifest, ["path"])
    base = source.rpartition("/")[0]
    for name, patient, label in zip(*(table.cells(one) for one in ("path", "patient", "label")), strict=True):
        yield _ListedImage(name if is_address(name) else f"{base}/{name}", patient, label)


def _from_parquet(files: ParquetFiles) -> Iterator[_ListedImage]:
    """Yield the images that Parquet files name; a local path is relative to the file."""
    from pyarrow import parquet

    for name in files.paths:
        system, path = file_system(name)
        base = name.rpartition("/")[0]
        with system.open(path, "rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(columns=list(files.columns.values())):
                columns = {one: batch.column(column).to_pylist() for one, column in files.columns.items()}
                empty = [""] * batch.num_rows
                for image, patient, label in zip(
                    columns["path"], columns.get("patient", empty), columns.get("label", empty), strict=True
                ):
                    stated = str(image or "")
                    place = stated if is_address(stated) or stated.startswith("/") else f"{base}/{stated}"
                    yield _ListedImage(place, _cell(patient), _cell(label))


def _columns_of(system: Any, path: str) -> dict[str, str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with system.open(path, "rb") as file:
            schema = parquet.read_schema(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = {
        what: next((lower[name] for name in COLUMNS[what] if name in lower), "")
        for what in ("path", "patient", "label")
    }
    found["bytes"] = next((lower[name] for name in _BYTES if name in lower), "")
    if not found["path"] and not found["bytes"]:
        raise DataError(
            f"{path}: expected a column path or bytes, got {', '.join(schema.names)}. Rename the column of the images."
        )
    return {what: name for what, name in found.items() if name}


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _address(system: Any, path: str, source: str) -> str:
    """Return a path of a file system as an address, if the source is one."""
    if not is_address(source) or is_address(path):
        return path
    return str(system.unstrip_protocol(path))
