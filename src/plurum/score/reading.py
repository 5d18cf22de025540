"""Content of images: local files, addresses that fsspec reads, and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plurum.client.connection.payload import prepare_image, without_patient
from plurum.client.connection.predictions import Failure
from plurum.errors import ImageError, SettingsError, needs_extra
from plurum.regular_files import MAX_IMAGE_BYTES

__all__ = ["ImageReader", "file_system", "is_address"]

# Threads that read files: a network's delay is longer than the work for an image.
_THREADS = 8
# A network fails more often than an image does.
_TRIES = 3


class ImageReader:
    """Reads images, several at a time; close it in the end."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="plurum-score")

    def start(self, images: Sequence[str | bytes]) -> Iterator[bytes | Failure]:
        """Start to read, and return an iterator over the content of each image; a failure if it can't be read.

        A content is what is sent to a server.
        """
        # There is nothing to wait for with bytes, and a thread per image would cost as much as a small PNG file.
        read_each = map if all(isinstance(one, bytes) for one in images) else self._threads.map
        return iter(read_each(_read, range(len(images)), images))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def is_address(name: str) -> bool:
    """Return True for an address such as `s3://bucket/scan.png`."""
    return "://" in name


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, or of a local path, and the path in it.

    Raises:
        MissingExtraError: fsspec is not installed.
        SettingsError: the protocol is unknown, or its package is not installed.
    """
    with needs_extra("ray", "fsspec"):
        import fsspec
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"{address}: expected an address that fsspec can open: {error}") from error
    return system, path


def _read(index: int, image: str | bytes) -> bytes | Failure:
    try:
        if isinstance(image, str) and is_address(image):
            return without_patient(_fetch(image))
        # Of an encoded image, a payload is bytes.
        return bytes(prepare_image(index, image, None).payload)
    except ImageError as error:
        return Failure(index, f"image {index}", str(error))


def _fetch(address: str) -> bytes:
    system, path = file_system(address)
    for left in reversed(range(_TRIES)):
        try:
            with system.open(path, "rb") as file:
                data: bytes = file.read(MAX_IMAGE_BYTES + 1)
            break
        # Each file system has errors of its own.
        except Exception as error:
            if left and not isinstance(error, FileNotFoundError | PermissionError):
                continue
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ImageError(f"can't be read: {reason}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"can't be read: expected at most {MAX_IMAGE_BYTES >> 20} MiB, got more")
    return data
