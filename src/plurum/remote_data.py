"""Images and manifests in stores: fetched once into the user's cache, then read as local files."""

from __future__ import annotations

import posixpath
from pathlib import Path

from plurum.errors import DataError
from plurum.manifests import read_manifest_table
from plurum.remote_files import fetch_files, fetch_tree, is_uri, join_uri

__all__ = ["fetch_data"]


def fetch_data(source: str) -> str:
    """Return the local path of data whose images may lie in a store; other names are returned as they are.

    An address is fetched: an object, a folder of objects, or a manifest with its images. A row of a manifest names an
    address, or a path relative to the manifest. The images of a local manifest may be addresses, too. Listed images
    that the store lacks stay missing.

    Raises:
        DataError: nothing is at the address, access is denied, or the store does not respond.
        MissingExtraError: the package for a store is not installed.
    """
    path = fetch_tree(source) if is_uri(source) else Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        _fetch_listed(path, source if is_uri(source) else None)
    return str(path) if is_uri(source) else source


def _fetch_listed(manifest: Path, uri: str | None) -> None:
    """Fetch the images of a manifest; `uri` is its address if it lies in a store."""
    try:
        names = read_manifest_table(manifest, ["path"]).cells("path")
    except DataError:
        # The reader of the manifest states the fault.
        return
    wanted = [name for name in names if is_uri(name)]
    if uri is not None:
        folder = uri.partition("?")[0].rpartition("/")[0]
        relative = [name for name in names if name and not is_uri(name)]
        for name in relative:
            if name.startswith("/") or posixpath.normpath(name).startswith(".."):
                raise DataError(f"{uri}: expected addresses, or paths below the manifest's folder, got {name}")
        wanted += [join_uri(folder, posixpath.normpath(name)) for name in relative]
    fetch_files(wanted)
