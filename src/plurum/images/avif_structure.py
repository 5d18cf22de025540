"""Structure of an AVIF (ISO/IEC 23000-22), read without decoding it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .image_limits import Structure, UnreadableImageError, check_size

__all__ = ["avif_structure"]

_MOST_BOXES = 1000
# Boxes that hold others, and the bytes before those.
_HOLDERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}
# A decoder filters each pixel several times.
_VISITS = 4


def avif_structure(data: bytes) -> Structure:
    """Return the structure of an AVIF.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, corrupt or animated.
    """
    if data[8:12] == b"avis":
        raise UnreadableImageError("an AVIF with several pictures (animation): save the wanted one alone")
    # An image of several cells states its own size too, which is the largest.
    sizes = [struct.unpack(">II", body[4:12]) for kind, body in _boxes(data) if kind == b"ispe" and len(body) >= 12]
    if not sizes:
        raise UnreadableImageError("image is corrupt: an AVIF without a size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    check_size(width, height)
    return Structure("AVIF", width, height, width * height * _VISITS + len(data), about="AVIF", apart=True)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each box, those within the description of the image too."""
    spans = [(0, len(data))]
    for _ in range(_MOST_BOXES):
        if not spans:
            return
        place, end = spans.pop()
        if place + 8 > end:
            continue
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1 and place + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        length = length or end - place
        if length < head or place + length > end:
            raise UnreadableImageError("image is corrupt or truncated: an AVIF box reaches beyond its end")
        spans.append((place + length, end))
        if kind in _HOLDERS:
            spans.append((place + head + _HOLDERS[kind], place + length))
        elif kind != b"mdat":
            yield kind, data[place + head : place + length]
    raise UnreadableImageError(f"image would take too long to read: more than {_MOST_BOXES} AVIF boxes")
