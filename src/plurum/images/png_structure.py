"""Structure of a PNG (ISO/IEC 15948), read without decompressing it: its cost, and the chunks to decode."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from .image_limits import Structure, UnreadableImageError, check_size, check_work

__all__ = ["has_all_rows", "png_structure"]

# Samples per pixel and allowed bits, by colour type.
_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
# Pixel chunks have 8 KB in most files; many small ones cost more than their bytes.
_FEW_CHUNKS, _CHUNK_BYTES = 1000, 1024
# Largest compression ratio of Deflate.
_MAX_RATIO = 1032
# Text chunks, some of which are compressed; they don't affect pixels.
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Keywords of text chunks that may state an orientation; each is read once.
_TURNING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
_DECODED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", *_TURNING)
# Adam7: first column and row of each pass, and the steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 18


def png_structure(data: bytes) -> Structure:
    """Return the structure of a PNG.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, too costly to decode, animated, or of an unsupported kind, which
            the message names.
    """
    kinds: set[bytes] = set()
    stated = 16
    pixel_bytes, kept, place, closed, most = 0, [b""], 0, False, _FEW_CHUNKS + len(data) // _CHUNK_BYTES
    for number, (kind, start, end) in enumerate(_chunks(data)):
        if number > most:
            raise UnreadableImageError(f"image would take too long to read: more than {most:,} PNG chunks")
        name = _name(kind, data, start)
        if (kind == b"IHDR") != (number == 0) or (name in kinds and kind in {b"PLTE", b"tRNS", b"acTL", b"eXIf"}):
            raise UnreadableImageError("image is corrupt: a PNG whose chunks are not in order")
        if kind == b"IDAT":
            if closed:
                raise UnreadableImageError("image is corrupt: a PNG whose pixels are interrupted")
            pixel_bytes += end - start
        elif pixel_bytes:
            closed = True
        _check_chunk(kind, data[start : min(end, start + 8)])
        if kind == b"sBIT" and end > start:
            stated = max(data[start : min(end, start + 3)])
        if name in kinds - {b"IDAT"} or name not in _DECODED:
            kept.append(data[place : start - 8])
            place = end + 4
        kinds.add(name)
    if b"IEND" not in kinds or b"IDAT" not in kinds:
        raise UnreadableImageError("image is corrupt or truncated: a PNG without an end (IEND)")
    clean = b"".join([*kept[1:], data[place:]]) if len(kept) > 1 else b""
    return _structure(data, kinds, pixel_bytes)._replace(stated_bits=stated, clean=clean)


def has_all_rows(data: bytes) -> bool:
    """Return True if the compressed pixels of a valid PNG have as many bytes as its size needs."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    due, inflater = _raw_size(width, height, bits * _COLOURS[colour][0], interlaced), zlib.decompressobj()
    for kind, start, end in _chunks(data):
        if kind != b"IDAT":
            continue
        rest = data[start:end]
        while due > 0 and rest and not inflater.eof:
            try:
                due -= len(inflater.decompress(rest, _PIECE))
            except zlib.error:
                return False
            rest = inflater.unconsumed_tail
    while due > 0 and not inflater.eof and (more := inflater.decompress(b"", _PIECE)):
        due -= len(more)
    return due <= 0


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the body of each chunk up to the last."""
    place, size = 8, len(data)
    while place + 12 <= size:
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > size:
            break
        yield kind, place + 8, end
        if kind == b"IEND":
            return
        place = end + 4
    raise UnreadableImageError("image is corrupt or truncated: a PNG chunk reaches beyond its end")


def _name(kind: bytes, data: bytes, start: int) -> bytes:
    """Return a chunk's kind, or the keyword of a text chunk that may state an orientation."""
    if kind not in _TEXTS:
        return kind
    return next((key for key in _TURNING if data.startswith(key, start)), kind)


def _check_chunk(kind: bytes, begin: bytes) -> None:
    if kind == b"acTL" and begin[:4] != b"\0\0\0\1":
        raise UnreadableImageError("a PNG with several pictures (APNG): save the wanted one alone")
    # A capital first letter marks a critical chunk, without which the pixels can't be decoded.
    if kind not in _DECODED and not kind[0] & 0x20:
        raise UnreadableImageError(f"image is corrupt: a PNG with an unknown chunk {kind!r}")


def _structure(data: bytes, kinds: set[bytes], pixel_bytes: int) -> Structure:
    width, height, bits, colour, compression, method, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    samples, allowed = _COLOURS.get(colour, (0, ()))
    if bits not in allowed or compression or method or interlaced > 1 or data[8:12] != b"\0\0\0\x0d":
        raise UnreadableImageError(f"image is corrupt: a PNG of colour type {colour} with {bits} bits")
    if colour == 3 and b"PLTE" not in kinds:
        raise UnreadableImageError("image is corrupt: a PNG without the palette that its pixels need")
    if b"tRNS" in kinds and bits == 16:
        raise UnreadableImageError(
            "a PNG of 16 bits with a transparent colour (tRNS), which is not supported: save it with an alpha channel"
        )
    check_size(width, height)
    due = _raw_size(width, height, bits * samples, interlaced)
    if pixel_bytes * _MAX_RATIO < due:
        raise UnreadableImageError(
            f"image is truncated: {pixel_bytes:,} compressed bytes can't hold the {due:,} of {width} x {height} pixels"
        )
    work = max(width * height, due // 3) * (1 + interlaced) + len(data)
    check_work(work)
    return Structure("PNG", width, height, work, bits, about="PNG", turned=bool(kinds & {b"eXIf", *_TURNING}))


def _raw_size(width: int, height: int, pixel_bits: int, interlaced: int) -> int:
    """Return the decompressed size of all rows in bytes, each with its filter byte."""
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total
