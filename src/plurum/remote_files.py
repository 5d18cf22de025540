"""Objects in S3, Google Cloud Storage, Azure and on web servers, kept as files in the user's cache.

~/.cache/plurum/storage/SCHEME/BUCKET/KEY          the object; the bucket of https is the host
~/.cache/plurum/storage/.states/SCHEME/BUCKET/KEY  its ETag and size when it was fetched

An object is fetched again if its ETag or size has changed. Credentials are those that the libraries of each store find
by themselves: environment variables, configuration files, the machine's role.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plurum.errors import DataError, PlurumError, needs_extra
from plurum.files import cache_folder, write_text

__all__ = [
    "cached_path",
    "display_name",
    "fetch_file",
    "fetch_files",
    "fetch_tree",
    "is_uri",
    "join_uri",
    "storage_errors",
]

_URI = re.compile(r"(s3|gs|az|https)://([^/]+)(/.*)?", re.DOTALL)
# Extra, package and protocol of fsspec, by scheme.
_STORES = {
    "s3": ("s3", "s3fs", "s3"),
    "gs": ("gcs", "gcsfs", "gcs"),
    "az": ("azure", "adlfs", "az"),
    "https": ("https", "fsspec.implementations.http", "https"),
}
_ETAGS = ("ETag", "etag", "md5Hash", "Content-MD5")
_AT_ONCE = 16
_TRIES = 3


def is_uri(name: str) -> bool:
    """Return True for an address such as s3://BUCKET/KEY."""
    return _URI.fullmatch(name) is not None


def join_uri(uri: str, name: str) -> str:
    """Return the address of the object `name` in the folder `uri`."""
    return f"{uri.rstrip('/')}/{name}"


def cached_path(uri: str) -> Path:
    """Return the file in the cache for an address; it may be missing.

    Raises:
        DataError: the address has parts that no file can have, such as `..`.
    """
    scheme, bucket, key, query = _parts(uri)
    # The query may hold a signature, which must not be in a file name.
    digest = ["?" + hashlib.sha256(query.encode()).hexdigest()[:8]] if query else []
    return _root().joinpath(scheme, bucket, *digest, *key)


def display_name(path: str) -> str:
    """Return the address of a file in the cache, or the path of any other file."""
    # Not by pathlib, which keeps the parts of every path in memory.
    root = f"{_root()}/"
    if not path.startswith(root):
        return path
    scheme, bucket, *key = path.removeprefix(root).split("/")
    return f"{scheme}://{'/'.join((bucket, *(part for part in key if not part.startswith('?'))))}"


def fetch_file(uri: str) -> Path:
    """Return the object as a file in the cache, fetched if it has changed.

    Raises:
        DataError: there is no such object, access is denied, or the store does not respond.
        MissingExtraError: the package for this store is not installed.
    """
    store = _store_of(uri)
    with storage_errors(uri):
        return _fetch(store, uri, store.info(_remote(uri)))


def fetch_files(uris: Iterable[str]) -> None:
    """Fetch objects, several at once; missing ones are left out.

    Raises:
        DataError: access is denied, or a store does not respond.
        MissingExtraError: the package for a store is not installed.
    """
    unique = list(dict.fromkeys(uris))
    stores = {scheme: _store_of(f"{scheme}://x") for scheme in {_parts(uri)[0] for uri in unique}}

    def fetch(uri: str) -> None:
        store = stores[_parts(uri)[0]]
        with storage_errors(uri):
            try:
                found = store.info(_remote(uri))
            except FileNotFoundError:
                cached_path(uri).unlink(missing_ok=True)
                return
            _fetch(store, uri, found)

    _do_at_once(fetch, unique)


def fetch_tree(uri: str) -> Path:
    """Return an object as a file, or all objects below an address as a folder, in the cache.

    Files of the folder that the store no longer has are removed.

    Raises:
        DataError: there is nothing at the address, access is denied, or the store does not respond.
        MissingExtraError: the package for this store is not installed.
    """
    store = _store_of(uri)
    with storage_errors(uri):
        top = store.info(_remote(uri))
        if top["type"] != "directory":
            return _fetch(store, uri, top)
        found: dict[str, Any] = store.find(_remote(uri), detail=True)
    scheme = _parts(uri)[0]
    by_uri = {f"{scheme}://{key.lstrip('/')}": info for key, info in found.items()}
    by_uri = {name: info for name, info in by_uri.items() if info["type"] == "file" and not name.endswith("/")}

    def fetch(name: str) -> None:
        with storage_errors(name):
            _fetch(store, name, by_uri[name])

    _do_at_once(fetch, by_uri)
    folder = cached_path(uri)
    known = {cached_path(name) for name in by_uri}
    for file in folder.rglob("*"):
        if file.is_file() and file not in known:
            file.unlink()
    return folder


def _do_at_once(work: Any, names: Collection[str]) -> None:
    """Call `work` for each name in threads; the first error ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for _ in pool.map(work, names):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(store: Any, uri: str, info: dict[str, Any]) -> Path:
    """Return the object as a file, which replaces an outdated one atomically."""
    path = cached_path(uri)
    state_file = _root() / ".states" / path.relative_to(_root())
    etag = next((info[name] for name in _ETAGS if info.get(name)), None)
    state = f"{etag} {info.get('size')}"
    with contextlib.suppress(OSError):
        if etag and state_file.read_text(encoding="utf-8") == state and path.stat().st_size == info.get("size"):
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching") as folder:
        hidden = Path(folder) / "object"
        _download(store, uri, hidden, info.get("size"))
        state_file.unlink(missing_ok=True)
        os.replace(hidden, path)  # noqa: PTH105 - the same as Path.replace, which returns a new path
    write_text(state_file, state)
    return path


def _download(store: Any, uri: str, hidden: Path, size: int | None) -> None:
    """Write the object to `hidden`; interrupted transfers are repeated."""
    for left in reversed(range(_TRIES)):
        try:
            store.get_file(_remote(uri), str(hidden))
            if size is not None and (got := hidden.stat().st_size) != size:
                raise OSError(f"expected {size:,} bytes, got {got:,}")
        except (FileNotFoundError, PermissionError):
            raise
        # Each library has its own errors of the network.
        except Exception:
            if not left:
                raise
        else:
            return


def _root() -> Path:
    return cache_folder() / "storage"


def _parts(uri: str) -> tuple[str, str, list[str], str]:
    """Return scheme, bucket, the parts of the key, and the query of a web address."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise DataError(f"{uri}: expected an address such as s3://BUCKET/KEY")
    scheme, bucket, rest = found[1], found[2], found[3] or ""
    key, _, query = rest.partition("?") if scheme == "https" else (rest, "", "")
    parts = key.strip("/").split("/") if key.strip("/") else []
    if any(part in {"", ".", ".."} or "\0" in part for part in (bucket, *parts)):
        raise DataError(f"{_without_query(uri)}: expected an address without empty parts, '.' and '..'. Rename it.")
    return scheme, bucket, parts, query


def _remote(uri: str) -> str:
    """Return the address as its store takes it."""
    scheme, bucket, key, _ = _parts(uri)
    return uri if scheme == "https" else "/".join((bucket, *key))


def _store_of(uri: str) -> Any:
    extra, package, protocol = _STORES[_parts(uri)[0]]
    with needs_extra(extra, "fsspec", package):
        import fsspec
    with storage_errors(uri):
        # Old listings would hide new objects.
        return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)


def _without_query(uri: str) -> str:
    """Return an address without its query, which may hold a signature."""
    return uri.partition("?")[0] if uri.startswith("https:") else uri


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn the errors of a store's library into one line about the address.

    Raises:
        DataError: there is nothing at the address, access is denied, or the store does not respond.
    """
    shown = _without_query(uri)
    try:
        yield
    except PlurumError:
        raise
    except PermissionError as error:
        raise DataError(
            f"{shown}: access is denied ({_first_line(error)}). Check the credentials that the store's own tools use."
        ) from error
    # Each library has errors of its own.
    except Exception as error:
        # Also raised if a web server can't be reached.
        if isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, OSError):
            raise DataError(f"{shown}: expected an object or a folder, got none. Correct the address.") from error
        reason = f"{type(error).__name__}: {_first_line(error)}".replace(uri, shown)
        raise DataError(f"{shown} can't be read ({reason}). Check address, credentials and network.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
