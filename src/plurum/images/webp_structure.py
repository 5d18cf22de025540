"""Structure of a WebP (RFC 9649), read without decoding it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .image_limits import Structure, UnreadableImageError, check_size

__all__ = ["webp_structure"]

_MOST_CHUNKS = 100
_KEY_FRAME = b"\x9d\x01\x2a"
_LOSSLESS = 0x2F
_TURNING = (b"EXIF", b"XMP ")


def webp_structure(data: bytes) -> Structure:
    """Return the structure of a WebP.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, corrupt or animated.
    """
    kinds: list[bytes] = []
    width = height = 0
    canvas = None
    for kind, body in _chunks(data):
        kinds.append(kind)
        if kind in {b"ANIM", b"ANMF"}:
            raise UnreadableImageError("a WEBP with several pictures (animation): save the wanted one alone")
        if kind == b"VP8X" and len(body) >= 10:
            canvas = tuple(int.from_bytes(body[start : start + 3], "little") + 1 for start in (4, 7))
        if kind == b"VP8 ":
            if len(body) < 10 or body[3:6] != _KEY_FRAME:
                raise UnreadableImageError("image is corrupt: a WEBP without a key frame")
            width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", body, 6))
        elif kind == b"VP8L":
            if len(body) < 5 or body[0] != _LOSSLESS:
                raise UnreadableImageError("image is corrupt: a WEBP without a lossless header")
            (bits,) = struct.unpack_from("<I", body, 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if len([kind for kind in kinds if kind in {b"VP8 ", b"VP8L"}]) != 1:
        raise UnreadableImageError("image is corrupt: expected a WEBP with one picture")
    if canvas not in {None, (width, height)}:
        raise UnreadableImageError("image is corrupt: its WEBP headers state two sizes")
    check_size(width, height)
    turned = any(kind in kinds for kind in _TURNING)
    return Structure("WEBP", width, height, width * height + len(data), about="WEBP", turned=turned, apart=True)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each chunk."""
    (size,) = struct.unpack_from("<I", data, 4)
    end = size + 8
    if end > len(data) or len(data) < 20:
        raise UnreadableImageError("image is truncated: a WEBP that is shorter than it states")
    place = 12
    for _ in range(_MOST_CHUNKS):
        if place + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, place)
        if place + 8 + length > end:
            raise UnreadableImageError("image is corrupt or truncated: a WEBP chunk reaches beyond its end")
        yield kind, data[place + 8 : place + 8 + length]
        # Chunks of odd length are padded.
        place += 8 + length + length % 2
    raise UnreadableImageError(f"image would take too long to read: more than {_MOST_CHUNKS} WEBP chunks")
