"""Structure of a TIFF (Adobe TIFF 6.0, BigTIFF), read without decoding it: its image, cost and kind.

Kinds are supported if the decoder's pixels were compared with an independent reader's (`tests/test_pixel_matrix.py`).
All others are refused, and the message names the feature.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .image_limits import (
    MAX_PIXELS,
    Structure,
    TooLargeImageError,
    UnreadableImageError,
    check_size,
    check_work,
    too_large_text,
)
from .jpeg_structure import jpeg_scan

__all__ = ["tiff_structure"]

_MAX_PAGES, _MAX_ENTRIES = 1000, 400
# Most tags of all pages, and most strips or tiles, of which JPEG-compressed ones cost more to check.
_MAX_TAGS, _MAX_SEGMENTS, _MAX_STREAMS, _MAX_TABLES = 10_000, 30_000, 5000, 1 << 14
# Struct formats of the integer types, and bytes per value of all types.
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q", 13: "I", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES = 266, 270, 273, 274, 277, 278, 279
_MAX_VALUE, _PLANES, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT = 281, 284, 317, 320, 322, 323
_TILES, _TILE_BYTES, _INKS, _EXTRA, _FORMAT, _SMAX_VALUE, _TABLES = 324, 325, 332, 338, 339, 341, 347
_XMP, _DEPTH, _TILE_DEPTH = 700, 32997, 32998
_NUMBER_KINDS = {1: "u", 2: "i", 3: "f"}
_COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    34887: "LERC",
    34925: "LZMA",
    34933: "PNG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34892: "lossy JPEG",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_PHOTOMETRICS = {
    0: "white is zero",
    1: "black is zero",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "inks",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    34892: "linear raw",
}
# Other compressions have no predictor, and decoders differ on files that state one.
_PREDICTED = (5, 8, 32946, 50000)
# Bits of grey numbers by their kind, beyond 16 unsigned ones. Only a window maps them to 8 bits.
_WITH_WINDOW = {"u": (32,), "i": (16, 32), "f": (32,)}
_PLAIN, _JPEG = (1, 5, 8, 32773, 32946, 50000), 7
# Supported kinds by photometric: bits, number of colour samples, and bits with an opacity sample.
_READ: dict[int, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    0: ((1, 2, 4, 8), 1, ()),
    1: ((1, 2, 4, 8, 16), 1, (8,)),
    2: ((8, 16), 3, (8, 16)),
    3: ((1, 2, 4, 8), 1, ()),
    5: ((8,), 4, ()),
    6: ((8,), 3, ()),
}


def tiff_structure(data: bytes) -> Structure:
    """Return the structure of the only image in a TIFF; reduced copies and masks are ignored.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, too costly to decode, one of several, or of an unsupported kind,
            which the message names.
    """
    try:
        file = _TiffReader(data)
        pages = list(file.pages())
        for page in pages:
            # Check first: for slides, which have several pages, the size is the better reason.
            if (width := file.number(page, _WIDTH, 0)) * (height := file.number(page, _HEIGHT, 0)) > MAX_PIXELS:
                raise TooLargeImageError(too_large_text(width, height))
        page = _image_page(pages)
        kind = _PixelFormat(file, page)
        check_size(kind.width, kind.height)
        kind.check()
        work = kind.segments_work()
    except (struct.error, IndexError, OverflowError) as error:
        raise UnreadableImageError("image is corrupt or truncated: TIFF tags that can't be read") from error
    check_work(work)
    clean = b"" if page.place == file.first else file.beginning_with(page.place)
    return Structure(
        "TIFF",
        kind.width,
        kind.height,
        work,
        kind.bits[0],
        stated_bits=kind.stated_bits(),
        number=kind.kind_of_number,
        about=kind.about(),
        turned=kind.number(_ORIENTATION, 1) != 1 or _XMP in page.entries,
        clean=clean,
        streams=tuple(kind.streams),
    )


@dataclass(frozen=True)
class _TiffPage:
    """Image file directory of a page.

    Attributes:
        place: Offset of the directory.
        entries: Type, number and offset of the values, by tag.
        subfile: Value of NewSubfileType.
    """

    place: int
    entries: dict[int, tuple[int, int, int]]
    subfile: int


class _TiffReader:
    """Reader of the directories of a TIFF."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        (version,) = struct.unpack_from(self.order + "H", data, 2)
        self.big = version == 43
        if version not in {42, 43}:
            raise UnreadableImageError(f"image is corrupt: a TIFF of version {version}")
        self._offset = self.order + ("Q" if self.big else "I")
        (self.first,) = struct.unpack_from(self._offset, data, 8 if self.big else 4)

    def pages(self) -> Iterator[_TiffPage]:
        place, seen = self.first, set[int]()
        budget, tags = len(self.data), 0
        while place:
            if place in seen or len(seen) >= _MAX_PAGES:
                raise UnreadableImageError(f"image is corrupt: TIFF pages in a circle, or more than {_MAX_PAGES:,}")
            seen.add(place)
            page, following, size = self._page(place)
            budget, tags = budget - size, tags + len(page.entries)
            if budget < 0 or tags > _MAX_TAGS:
                raise UnreadableImageError("image is corrupt: too many TIFF tags, or tags that share their values")
            yield page
            place = following

    def _page(self, place: int) -> tuple[_TiffPage, int, int]:
        """Return the directory at `place`, the offset of the next one, and the bytes of its values."""
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), self.data, place)
        if count > _MAX_ENTRIES:
            raise UnreadableImageError(f"image is corrupt: a TIFF directory of {count:,} tags")
        head, entry, inline = (8, 20, 8) if self.big else (2, 12, 4)
        entries: dict[int, tuple[int, int, int]] = {}
        total = 0
        for number in range(count):
            at = place + head + number * entry
            tag, kind = struct.unpack_from(self.order + "HH", self.data, at)
            (values,) = struct.unpack_from(self._offset, self.data, at + 4)
            size, start = _SIZES.get(kind, 1) * values, at + entry - inline
            if size > inline:
                (start,) = struct.unpack_from(self._offset, self.data, start)
                total += size
            if start + size > len(self.data):
                raise UnreadableImageError(f"image is corrupt or truncated: TIFF tag {tag} reaches beyond its end")
            if tag in entries:
                raise UnreadableImageError(f"image is corrupt: TIFF tag {tag} is duplicated")
            entries[tag] = kind, values, start
        (following,) = struct.unpack_from(self._offset, self.data, place + head + count * entry)
        page = _TiffPage(place, entries, 0)
        return _TiffPage(place, entries, self._subfile(page)), following, total

    def _subfile(self, page: _TiffPage) -> int:
        old = {2: 1, 3: 2}.get(self.number(page, _OLD_SUBFILE, 1), 0)
        return self.number(page, _SUBFILE, old)

    def numbers(self, page: _TiffPage, tag: int) -> tuple[int, ...]:
        """Return the values of an integer tag; empty if it is missing."""
        kind, count, start = page.entries.get(tag, (3, 0, 0))
        if kind not in _NUMBERS:
            raise UnreadableImageError(f"image is corrupt: TIFF tag {tag} is not of integers")
        return struct.unpack_from(f"{self.order}{count}{_NUMBERS[kind]}", self.data, start)

    def number(self, page: _TiffPage, tag: int, default: int) -> int:
        """Return the first value of an integer tag, or `default`."""
        return (self.numbers(page, tag) or (default,))[0]

    def bytes_of(self, page: _TiffPage, tag: int) -> bytes:
        """Return the bytes of a tag's value."""
        kind, count, start = page.entries.get(tag, (1, 0, 0))
        return self.data[start : start + count * _SIZES.get(kind, 1)]

    def beginning_with(self, place: int) -> bytes:
        """Return the file with the directory at `place` as the first."""
        at, size = (8, 8) if self.big else (4, 4)
        return self.data[:at] + struct.pack(self._offset, place) + self.data[at + size :]


def _image_page(pages: list[_TiffPage]) -> _TiffPage:
    """Return the page of the image, the only one that is not a reduced copy (1) or a mask (4)."""
    whole = [page for page in pages if not page.subfile & 5]
    if not pages:
        raise UnreadableImageError("image is corrupt or truncated: a TIFF without pages")
    if not whole:
        raise UnreadableImageError("a TIFF with only reduced copies or masks, without the image itself")
    if len(whole) > 1:
        raise UnreadableImageError(f"a TIFF with {len(whole)} pages: save the wanted one alone")
    return whole[0]


class _PixelFormat:
    """Pixel format of a page."""

    def __init__(self, file: _TiffReader, page: _TiffPage) -> None:
        self._file, self._page = file, page
        self.width, self.height = self.number(_WIDTH, 0), self.number(_HEIGHT, 0)
        self.samples = self.number(_SAMPLES, 1)
        self.bits = self.numbers(_BITS) or (1,)
        self.photometric = self.number(_PHOTOMETRIC, -1)
        self.compression = self.number(_COMPRESSION, 1)
        self.planar = self.number(_PLANES, 1) == 2
        formats = set(self.numbers(_FORMAT)) or {1}
        self.kind_of_number = _NUMBER_KINDS.get(formats.pop(), "") if len(formats) == 1 else ""
        self.streams: list[tuple[tuple[int, int], bytes]] = []

    def number(self, tag: int, default: int) -> int:
        """Return the first value of an integer tag, or `default`."""
        return self._file.number(self._page, tag, default)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return the values of an integer tag."""
        return self._file.numbers(self._page, tag)

    def about(self) -> str:
        """Return a description of the pixel format."""
        compression = _COMPRESSIONS.get(self.compression, str(self.compression))
        colours = _PHOTOMETRICS.get(self.photometric, str(self.photometric))
        bits = self.bits[0] if len(set(self.bits)) == 1 else "/".join(map(str, self.bits[:8]))
        number = {"i": " signed", "f": " floating-point"}.get(self.kind_of_number, "")
        return f"TIFF, {bits}{number} bits, samples {self.samples}, colours {colours}, compression {compression}"

    def refuse(self, what: str) -> UnreadableImageError:
        """Return the error for an unsupported pixel format, with the reason `what`."""
        return UnreadableImageError(
            f"a TIFF that can't be decoded here, {what} ({self.about()}): save it as 8- or 16-bit grey or RGB, "
            f"uncompressed or with LZW"
        )

    def check(self) -> None:
        """Check that the pixel format is supported."""
        known, count, with_opacity = _READ.get(self.photometric, ((), 0, ()))
        bits, extra = self.bits[0], self.numbers(_EXTRA)
        if not count:
            raise self.refuse("its colours are not supported")
        if self.photometric == 1 and self.samples == 1 and bits in _WITH_WINDOW.get(self.kind_of_number, ()):
            known = (bits,)
            if self._file.order == ">" and self.compression != 1:
                # Pillow would exchange the bytes twice.
                raise self.refuse("such numbers are supported in this byte order only without compression")
        elif self.kind_of_number != "u":
            raise self.refuse("its numbers are not supported")
        if bits not in known or set(self.bits) != {bits} or len(self.bits) not in {1, self.samples}:
            raise self.refuse("its bits are not supported")
        if self.samples != count + len(extra) or len(extra) > 1 or (extra and bits not in with_opacity):
            raise self.refuse("its samples are not supported")
        if extra and (extra[0] > 2 or self.planar):
            raise self.refuse("its samples are not supported")
        if self.planar and bits == 16 and self.compression == 1:
            raise self.refuse("16 bits in separate planes are supported only with compression")
        if self.number(_DEPTH, 1) != 1 or self.number(_TILE_DEPTH, 1) != 1:
            raise self.refuse("it is a volume")
        self._check_compression(bits)
        self._check_values(bits)

    def _check_compression(self, bits: int) -> None:
        # In CCITT (fax) compression, decoders can't detect truncation.
        if self.compression not in (*_PLAIN, _JPEG):
            raise self.refuse("its compression is not supported")
        if self.compression == _JPEG and (bits != 8 or self.photometric not in {0, 1, 2, 6} or self.numbers(_EXTRA)):
            raise self.refuse("its compression is not supported")
        if self.photometric == 6 and (self.compression != _JPEG or self.planar):
            raise self.refuse("YCbCr is supported only with JPEG compression")
        if self.number(_PREDICTOR, 1) not in ({1, 2} if self.compression in _PREDICTED else {1}):
            raise self.refuse("its predictor is not supported")
        if self.number(_FILL_ORDER, 1) != 1:
            raise self.refuse("its order of bits is not supported")
        if self.number(_INKS, 1) != 1:
            raise self.refuse("inks other than CMYK are not supported")

    def _check_values(self, bits: int) -> None:
        """Check that values use the full range of their bits."""
        if self.photometric == 3:
            colours = self.numbers(_COLOURS)
            if len(colours) != 3 << bits or max(colours) > 65_535:
                raise UnreadableImageError("image is corrupt: a TIFF without the palette that its pixels need")
            if 0 < max(colours) < 256:
                raise self.refuse("its palette has 8 bits, not 16: save it as RGB")
        description = self._file.bytes_of(self._page, _DESCRIPTION)
        if description.startswith(b"ImageJ=") and b"\nimages=" in description and b"\nimages=1\n" not in description:
            raise UnreadableImageError("a TIFF with several images (ImageJ's stack): save the wanted one alone")

    def stated_bits(self) -> int:
        """Return how many of 16 bits are significant, by the stated largest value; 16 if unknown."""
        if self.bits[0] != 16 or self.kind_of_number != "u":
            return 16
        most = max(*self.numbers(_MAX_VALUE), *self.numbers(_SMAX_VALUE), 0, 0)
        return most.bit_length() if 255 < most < 65535 and most & (most + 1) == 0 else 16

    def segments_work(self) -> int:
        """Return the number of pixels in all strips or tiles, after checking that they are present."""
        tiled = bool(self.numbers(_TILES))
        if tiled == bool(self.numbers(_STRIPS)):
            raise UnreadableImageError("image is corrupt: a TIFF with neither strips nor tiles, or with both")
        rows = self.number(_TILE_HEIGHT if tiled else _ROWS, 0 if tiled else self.height)
        columns = self.number(_TILE_WIDTH, 0) if tiled else self.width
        rows = rows if tiled else min(rows, self.height)
        if rows < 1 or columns < 1:
            raise UnreadableImageError("image is corrupt: TIFF strips or tiles without a size")
        layers = self.samples if self.planar else 1
        number = -(-self.height // rows) * -(-self.width // columns) * layers
        if rows * columns > MAX_PIXELS or rows * columns * number // layers > 2 * MAX_PIXELS:
            raise UnreadableImageError(
                f"image of {self.width} x {self.height} pixels has tiles of {columns} x {rows}: at most {MAX_PIXELS:,} "
                f"pixels are decoded"
            )
        if number > (_MAX_STREAMS if self.compression == _JPEG else _MAX_SEGMENTS):
            raise UnreadableImageError(f"image would take too long to decode: {number:,} strips or tiles")
        offsets, counts = (
            self.numbers(_TILES if tiled else _STRIPS),
            self.numbers(_TILE_BYTES if tiled else _STRIP_BYTES),
        )
        if len(offsets) != number or len(counts) != number:
            raise UnreadableImageError(
                f"image is corrupt or truncated: {min(len(offsets), len(counts)):,} of {number:,} strips or tiles"
            )
        work, across = 0, -(-self.width // columns)
        for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            if not count or offset + count > len(self._file.data):
                raise UnreadableImageError(
                    f"image is truncated: TIFF strip or tile {index + 1} of {number:,} is missing"
                )
            top, left = index // across % -(-self.height // rows) * rows, index % across * columns
            end = min(left + columns, self.width), min(top + rows, self.height)
            work += self._segment_work(offset, count, (columns, rows if tiled else end[1] - top), end)
        return work

    def _segment_work(self, offset: int, count: int, size: tuple[int, int], end: tuple[int, int]) -> int:
        """Return the number of pixels in a strip or tile, after checking that it has enough bytes."""
        columns, rows = size
        samples = 1 if self.planar else self.samples
        if self.compression == _JPEG:
            stream = self._stream(self._file.data[offset : offset + count])
            scan = jpeg_scan(stream)
            if (scan.width, scan.height, scan.components) != (columns, rows, samples):
                raise UnreadableImageError(
                    f"image is corrupt: a TIFF strip or tile of {columns} x {rows} pixels holds a JPEG of "
                    f"{scan.width} x {scan.height}"
                )
            self.streams.append((end, stream))
            return scan.work
        due = rows * -(-columns * samples * self.bits[0] // 8)
        if self.compression == 1 and count < due:
            raise UnreadableImageError(f"image is truncated: a TIFF strip or tile has {count:,} of {due:,} bytes")
        # Windows on 32 bits are computed for each pixel, not looked up.
        return max(rows * columns, due // (1 if self.bits[0] == 32 else 3)) + count

    def _stream(self, data: bytes) -> bytes:
        """Return the JPEG of a strip or tile, with the shared tables added."""
        tables = self._file.bytes_of(self._page, _TABLES)
        if not tables:
            return data
        if len(tables) > _MAX_TABLES:
            raise UnreadableImageError("image is corrupt: a TIFF's JPEG tables are too large")
        if not tables.startswith(b"\xff\xd8") or not tables.endswith(b"\xff\xd9") or not data.startswith(b"\xff\xd8"):
            raise UnreadableImageError("image is corrupt: a TIFF's JPEG tables can't be read")
        return tables[:-2] + data[2:]
