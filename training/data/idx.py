"""Read IDX files, the format of MNIST and similar data sets; see http://yann.lecun.com/exdb/mnist."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.regular_files import open_regular
from plurum.run import Split
from plurum.training.data.arrays import images_from_parts
from plurum.training.data.labelled_images import LabelledImages

__all__ = ["array_from_idx", "holds_idx", "images_from_idx"]

# MNIST's names of the splits; validation is drawn from train.
_SPLITS: dict[str, Split] = {"train": "train", "t10k": "test"}
_UNSIGNED_BYTE = 8
# All of MNIST takes 55 MB.
_MAX_BYTES = 1 << 33


def holds_idx(folder: Path) -> bool:
    """Return True if `folder` holds training images in MNIST's format."""
    return any(folder.glob("train-images?idx3-ubyte*"))


def images_from_idx(folder: Path, seed: int) -> LabelledImages:
    """Return the images of a folder with MNIST's four files, plain or as `.gz`.

    `t10k` is the test split; a fifth of each class of `train` is drawn for validation.

    Raises:
        DataError: a file is missing, invalid, or does not match the others.
    """
    parts = {
        part: (_find_array(folder, f"{part}-images?idx3-ubyte", 3), _find_array(folder, f"{part}-labels?idx1-ubyte", 1))
        for part in _SPLITS
    }
    return images_from_parts(folder, parts, _SPLITS, seed)


def array_from_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes that an IDX file holds, plain or as `.gz`.

    Raises:
        DataError: the file is unreadable, has another type or number of dimensions, or its size does not match its
            header.
    """
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(open_regular(path))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[assignment]
            return _array(path, file, dimensions)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} can't be read: {error or 'too little memory'}") from error


def _array(path: Path, file: BinaryIO, dimensions: int) -> npt.NDArray[np.uint8]:
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or head[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file: {len(head)} bytes that start with {head[:4]!r}")
    if head[2] != _UNSIGNED_BYTE or head[3] != dimensions:
        raise DataError(
            f"{path}: expected {dimensions} dimensions of unsigned bytes (0x08), got {head[3]} of type {head[2]:#04x}"
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    needed = math.prod(shape)
    if needed > _MAX_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_BYTES:,} values, got a header with {list(shape)}")
    # One byte more, to notice a file that is too long without unpacking all of it.
    data = file.read(needed + 1)
    if len(data) != needed:
        raise DataError(
            f"{path} is truncated or too long: expected {needed:,} bytes of values for {list(shape)}, got "
            f"{'at least ' * (len(data) > needed)}{len(data):,}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find_array(folder: Path, pattern: str, dimensions: int) -> npt.NDArray[np.uint8]:
    files = sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])
    if not files:
        name = pattern.replace("?", "-")
        raise DataError(f"{folder} has no {name} or {name}.gz, which MNIST's format requires")
    return array_from_idx(files[0], dimensions)
