"""Model repositories in stores, fetched by the hashes of their export.json into the user's cache.

~/.cache/plurum/repositories/HASH           a whole repository, by the SHA-256 of its export.json
~/.cache/plurum/repositories/.HASH.partial  files that an interrupted fetch has checked already
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any

from plurum.errors import RepositoryError
from plurum.files import cache_folder, lock_file, sha256_of
from plurum.remote_files import cached_path, fetch_file, fetch_files, is_uri, join_uri
from plurum.repository.listing import check_exported, plans_of

__all__ = ["absolute_name", "local_repository"]

_MANIFEST, _CONFIG = "export.json", "config.pbtxt"


def local_repository(name: str) -> Path:
    """Return the folder of a repository, which is fetched if `name` is an address such as s3://BUCKET/REPO.

    Every file is checked with its SHA-256 in `export.json`. An interrupted fetch resumes; a fetched repository is
    complete and is never fetched again.

    Raises:
        DataError: the address has no `export.json`, access is denied, or the store does not respond.
        MissingExtraError: the package for the store is not installed.
        RepositoryError: the listing is invalid, or a file is missing or differs from it.
    """
    if not is_uri(name):
        return Path(name)
    manifest = fetch_file(join_uri(name, _MANIFEST))
    folder = cache_folder() / "repositories" / sha256_of(manifest)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = _lock(partial.with_name(f".{folder.name}.lock"))
    try:
        if not folder.is_dir():
            _fill(partial, name, manifest)
            os.replace(partial, folder)  # noqa: PTH105 - the same as Path.replace, which returns a new path
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)
    return folder


def absolute_name(name: str) -> str:
    """Return the absolute path of a repository, or its address."""
    return name if is_uri(name) else str(Path(name).absolute())


def _fill(partial: Path, uri: str, manifest: Path) -> None:
    hashes, plans = _listing(uri, manifest)
    missing = [one for one, sha256 in hashes.items() if not _is_whole(partial / one, sha256)]
    fetch_files(join_uri(uri, one) for one in (*missing, *plans))
    for one in (*missing, *plans):
        cached = cached_path(join_uri(uri, one))
        if not cached.is_file():
            if one in plans:
                continue
            raise RepositoryError(
                f"{join_uri(uri, one)}: expected a file that export.json lists, got none. Copy it again."
            )
        if one in hashes and sha256_of(cached) != hashes[one]:
            cached.unlink()
            raise RepositoryError(
                f"{join_uri(uri, one)} differs from its SHA-256 in export.json. Copy the repository again."
            )
        (partial / one).parent.mkdir(parents=True, exist_ok=True)
        os.replace(cached, partial / one)  # noqa: PTH105 - the same as Path.replace, which returns a new path
    for one in hashes:
        # Triton needs a version folder even for models without files in it.
        if PurePosixPath(one).name == _CONFIG:
            (partial / one).with_name("1").mkdir(exist_ok=True)
    shutil.copyfile(manifest, partial / _MANIFEST)
    check_exported(partial)


def _is_whole(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_of(file) == sha256


def _listing(uri: str, manifest: Path) -> tuple[dict[str, str], set[str]]:
    """Return the hash of every file, and the names of TensorRT's plans, which may have been built since."""
    try:
        content: dict[str, Any] = json.loads(manifest.read_bytes())
        hashes = {str(name): str(sha256) for name, sha256 in content["files"].items()}
        plans = plans_of(one["file"] for one in content["artefacts"] if one["backend"] == "tensorrt")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            f"{join_uri(uri, _MANIFEST)}: expected SHA-256 of all files, got none. Export the run again."
        ) from error
    for name in (*hashes, *plans):
        if PurePosixPath(name).is_absolute() or {"", ".", ".."} & set(name.split("/")) or "\\" in name:
            raise RepositoryError(f"{join_uri(uri, _MANIFEST)}: expected paths in the repository, got {name!r}")
    return hashes, plans


def _lock(path: Path) -> int:
    """Return the descriptor of a locked file, after waiting for other fetches of this repository."""
    while (found := lock_file(path)) is None:
        time.sleep(0.1)
    return found
