"""Structure of a JPEG 2000 image (ISO/IEC 15444-1), read without decoding it."""

from __future__ import annotations

import struct

from .image_limits import Structure, UnreadableImageError, check_size, check_work

__all__ = ["jpeg2000_structure"]

_START, _SIZE, _TILE, _END = 0xFF4F, 0xFF51, 0xFF90, b"\xff\xd9"
_CODESTREAM = b"jp2c"
_MOST_BOXES, _MOST_SEGMENTS, _MOST_TILE_PARTS = 100, 1000, 65_535
# A decoder visits each sample in every level of the wavelet transform, and each of its bits in three passes.
_VISITS = 8


def jpeg2000_structure(data: bytes) -> Structure:
    """Return the structure of a JPEG 2000 file or codestream.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, corrupt or too costly to decode, or its channels have different
            sizes.
    """
    try:
        return _structure(data, _codestream(data))
    except struct.error as error:
        raise UnreadableImageError("image is corrupt or truncated: a JPEG2000 that ends in its header") from error


def _codestream(data: bytes) -> int:
    """Return where the codestream starts."""
    if data.startswith(b"\xff\x4f\xff\x51"):
        return 0
    place = 0
    for _ in range(_MOST_BOXES):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        if kind == _CODESTREAM:
            return place + head
        if length < head or place + length >= len(data):
            break
        place += length
    raise UnreadableImageError("image is corrupt or truncated: a JPEG2000 without pixels")


def _structure(data: bytes, start: int) -> Structure:
    if struct.unpack_from(">HH", data, start) != (_START, _SIZE):
        raise UnreadableImageError("image is corrupt: a JPEG2000 whose codestream has no size")
    right, bottom, left, top, across, down, _, _, channels = struct.unpack_from(">8IH", data, start + 8)
    parts = [struct.unpack_from(">BBB", data, start + 42 + 3 * channel) for channel in range(min(channels, 5))]
    if not 1 <= channels <= 4:
        raise UnreadableImageError(f"JPEG2000: expected 1 to 4 channels, got {channels}. Save it as PNG or TIFF")
    if any(part[1:] != (1, 1) for part in parts):
        raise UnreadableImageError(
            "JPEG2000: expected channels of one size, got subsampled ones. Save it as PNG or TIFF"
        )
    bits = max((depth & 0x7F) + 1 for depth, _, _ in parts)
    if any(depth & 0x80 for depth, _, _ in parts) or bits > 16:
        raise UnreadableImageError("JPEG2000: expected unsigned values of at most 16 bits. Save it as PNG or TIFF")
    if right <= left or bottom <= top or not across or not down:
        raise UnreadableImageError("image is corrupt: a JPEG2000 of no size")
    width, height = right - left, bottom - top
    check_size(width, height)
    # Each tile costs some fixed work.
    tiles = -(-width // across) * -(-height // down)
    work = width * height * _VISITS + tiles * 1000
    check_work(work)
    _check_tiles(data, start)
    return Structure(
        "JPEG2000", width, height, work, 8 if bits <= 8 else 16, about="JPEG2000", turned=False, apart=True
    )


def _check_tiles(data: bytes, start: int) -> None:
    """Check that all parts of tiles are there, because decoders fill in missing ones."""
    place = start + 2
    for _ in range(_MOST_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == _TILE:
            break
        place += 2 + length
    for _ in range(_MOST_TILE_PARTS):
        if data[place : place + 2] == _END:
            return
        marker, _, _, length = struct.unpack_from(">HHHI", data, place)
        if marker != _TILE:
            break
        # The last part may leave its length open.
        end = place + length if length else data.rfind(_END)
        if end <= place or end + 2 > len(data):
            break
        place = end
    raise UnreadableImageError("image is corrupt or truncated: a JPEG2000 without an end (EOC)")
