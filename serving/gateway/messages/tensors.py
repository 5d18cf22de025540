"""Validate tensors from clients: convert JSON values to bytes, and check bytes against the stated shape."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from plurum.images.image_formats import FORMATS
from plurum.predictions.wire import raw_from_bytes
from plurum.serving.gateway.refusals import malformed
from plurum.spec import IMAGE, INPUT_PIXELS

__all__ = ["check_image", "check_tensor", "raw_from_json"]

# No request holds more images, and each element costs time to check.
_MAX_ELEMENTS = 4096
_MAX_DEPTH = 8
_SHAPES = {IMAGE: ("[batch, 1]", 2), INPUT_PIXELS: ("[batch, height, width, 3]", 4)}
# First characters of images in base64, and of a data URL. Each holds 6 bits; the last may hold bits of what follows.
_BASE64 = (
    *(
        base64.b64encode(start)[: len(start) * 8 // 6]
        for one in FORMATS.values()
        for start in one.starts
        if not one.offset
    ),
    b"data:",
)


def check_tensor(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> None:
    """Check an input against its stated shape.

    Args:
        name: Name of the tensor.
        datatype: BYTES or UINT8.
        shape: Stated shape, each size at least 1.
        raw: Contents; each element of BYTES has a length before it.

    Raises:
        RefusalError: name, type, shape and contents don't agree.
    """
    text = list(shape)
    if name in _SHAPES and len(text) != (rank := _SHAPES[name][1]):
        batch = "Add the batch dimension in front." if len(text) == rank - 1 else "Give each dimension its size."
        raise malformed(f"{name}: expected shape {_SHAPES[name][0]}, got {text}. {batch}")
    expected = math.prod(shape)
    if datatype == "UINT8":
        if len(raw) != expected:
            raise malformed(f"{name[:40]}: expected {expected} bytes for shape {text}, got {len(raw)}")
        return
    if expected > _MAX_ELEMENTS:
        raise malformed(f"{name[:40]}: expected at most {_MAX_ELEMENTS} elements, got shape {text}")
    at = count = 0
    while at < len(raw) and count <= expected:
        if at + 4 > len(raw):
            raise malformed(f"{name[:40]}: the length of element {count} is truncated")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4 + size
        if at > len(raw):
            raise malformed(
                f"{name[:40]}: expected {size} bytes in element {count}, as its length states, got "
                f"{len(raw) - at + size}. Send a length of 4 bytes, little-endian, and the bytes."
            )
        if name == IMAGE:
            check_image(raw[at - size : at])
        count += 1
    if count != expected:
        raise malformed(f"{name[:40]}: expected {expected} elements for shape {text}, got {count} or more")


def check_image(data: memoryview) -> None:
    """Refuse base64 text; the decoder refuses other invalid images.

    Raises:
        RefusalError: an image was sent as base64.
    """
    if bytes(data[:12]).startswith(_BASE64):
        raise malformed(f"{IMAGE}: expected the bytes of an image, got base64 text. Send the raw bytes.")


def raw_from_json(name: str, datatype: str, data: Any) -> bytes:
    """Return the bytes of a tensor that is given as a flat or nested JSON list.

    Raises:
        RefusalError: the values do not match `datatype`.
    """
    try:
        leaves = _leaves(data)
        if datatype == "BYTES":
            if not all(isinstance(leaf, str) for leaf in leaves):
                raise ValueError("expected strings")
            # Like Triton, use the text's UTF-8 bytes. Images are hardly ever text; clients send them as binary data.
            return raw_from_bytes(leaf.encode() for leaf in leaves)
        if not {*map(type, leaves)} <= {int, float}:
            raise ValueError("expected numbers")
        # Convert through float64, which holds a number of any size in 8 bytes.
        values = np.array(leaves, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            pixels = values.astype(np.uint8)
        if not np.array_equal(values, pixels):
            raise ValueError("expected whole numbers from 0 to 255")
        return pixels.tobytes()
    except (ValueError, OverflowError) as error:
        raise malformed(f"{name[:40]}: the data are not {datatype}: {str(error)[:100]}") from error


def _leaves(data: Any) -> list[Any]:
    """Return the values of evenly nested lists."""
    if not isinstance(data, list):
        raise ValueError("expected a list")  # noqa: TRY004 (the sender's mistake)
    leaves: list[Any] = data
    for _ in range(_MAX_DEPTH):
        if list not in (kinds := {*map(type, leaves)}):
            return leaves
        if kinds != {list} or len({*map(len, leaves)}) != 1:
            raise ValueError("expected lists of equal length")
        leaves = list(chain.from_iterable(leaves))
    raise ValueError(f"expected at most {_MAX_DEPTH} dimensions")
