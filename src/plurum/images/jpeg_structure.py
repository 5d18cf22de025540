"""Structure of a JPEG (ITU-T T.81), read without decoding it: its cost and completeness.

libjpeg fills in missing data with grey and decodes repeated data again; this module refuses both.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from .image_limits import (
    MAX_PIXELS,
    Structure,
    TooLargeImageError,
    UnreadableImageError,
    check_size,
    check_work,
    too_large_text,
)

__all__ = ["JpegScan", "jpeg_scan", "jpeg_structure", "structure_from_scan", "with_more_data"]

# Encoders write about a dozen; extended XMP and ICC profiles take up to several hundred.
_MAX_SEGMENTS = 1000
# Ten are usual; optimisers write up to several dozen.
_MAX_SCANS = 64
_MAX_FILL = 64
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MARKER_OR_RESTART = re.compile(rb"\xff[^\x00\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SOI, _EOI, _SOS, _DHT, _DRI, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD, 0xE1, 0xE2, 0xEE
# Names in the metadata of a phone's HDR gain map.
_GAIN_MAPS = (b"hdrgm:", b"HDRGainMap")
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_REFUSED = {
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCC), "arithmetic-coded"),
    0xDC: "with its height at the end (DNL)",
    0xF7: "JPEG-LS",
}
# Markers that may start a segment; restart markers and others without a body may not.
_KNOWN = {*range(0xC0, 0xD0), *range(0xD9, 0xF0), 0xF7, 0xFE}
_COMPLETE = [0] * 64


@dataclass(slots=True)
class _Component:
    across: int
    down: int
    # Lowest bit received of each coefficient; None before its first scan.
    lowest: list[int | None] = field(default_factory=lambda: [None] * 64)


@dataclass
class JpegScan:
    """Result of scanning one JPEG stream.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        components: Number of colour components.
        work: Number of pixels that a decoder visits, summed over scans.
        sequential: True if it is baseline or extended, not progressive.
        scans: Start and end of the entropy-coded data of each scan.
        end: Offset after the last byte.
        restarts: True if it has restart markers.
        adobe: True if it has Adobe's marker, which defines the colours of four components.
        turned: True if it has EXIF or XMP, which may state an orientation.
        pictures: Payload of the multi-picture index; empty without one.
    """

    width: int = 0
    height: int = 0
    components: int = 0
    work: int = 0
    sequential: bool = True
    scans: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0
    restarts: bool = False
    adobe: bool = False
    turned: bool = False
    pictures: bytes = b""


def jpeg_structure(data: bytes) -> Structure:
    """Return the structure of a JPEG file.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image is truncated, too costly to decode, one of several pictures, or of an
            unsupported kind, which the message names.
    """
    scan = jpeg_scan(data)
    check_size(scan.width, scan.height)
    if scan.components == 4 and not scan.adobe:
        raise UnreadableImageError("JPEG of 4 colours without Adobe's marker: the meaning of its colours is unknown")
    _check_pictures(data, scan)
    return structure_from_scan(scan)


def structure_from_scan(scan: JpegScan) -> Structure:
    """Return the structure for a scanned stream."""
    return Structure(
        "JPEG",
        scan.width,
        scan.height,
        scan.work,
        about="JPEG",
        turned=scan.turned,
        scans=tuple(scan.scans),
        restarts=scan.restarts,
        sequential=scan.sequential and len(scan.scans) == 1,
    )


def jpeg_scan(data: bytes) -> JpegScan:
    """Return the scan of one JPEG stream; more data may follow its end.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: as for `jpeg_structure`.
    """
    reader = _JpegReader()
    reader.read(data)
    if not reader.found.scans:
        raise UnreadableImageError("image is corrupt or truncated: a JPEG without pixels")
    reader.check_complete()
    return reader.found


class _JpegReader:
    """Reader of a stream, marker by marker."""

    def __init__(self) -> None:
        self.found = JpegScan()
        self.components: dict[int, _Component] = {}
        self._shortest: dict[int, int] = {}
        self._interval = 0
        self._segments = 0

    def read(self, data: bytes) -> None:
        if data[:2] != b"\xff\xd8":
            raise UnreadableImageError("image is corrupt: JPEG data without a start (SOI)")
        place = 2
        while True:
            marker, place = self._marker(data, place)
            if marker == _EOI:
                self.found.end = place
                return
            size = int.from_bytes(data[place : place + 2], "big")
            end = place + size
            if size < 2 or end > len(data):
                raise UnreadableImageError("image is corrupt or truncated: a JPEG segment reaches beyond its end")
            body = data[place + 2 : end]
            try:
                self._segment(marker, body)
                place = self._scan(data, body, end) if marker == _SOS else end
            except (IndexError, struct.error) as error:
                raise UnreadableImageError(f"image is corrupt: JPEG segment {marker:#x} is too short") from error

    def _marker(self, data: bytes, place: int) -> tuple[int, int]:
        """Return the marker at `place`, and its end."""
        start = place
        while data.startswith(b"\xff\xff", place):
            place += 1
            if place - start > _MAX_FILL:
                raise UnreadableImageError("image is corrupt: padding without end between JPEG segments")
        if place + 2 > len(data):
            raise UnreadableImageError("image is corrupt or truncated: JPEG without an end (EOI)")
        marker = data[place + 1]
        if data[place] != 0xFF or marker not in _KNOWN:
            raise UnreadableImageError(f"image is corrupt: bytes {data[place : place + 2]!r} instead of a JPEG marker")
        self._segments += 1
        if self._segments > _MAX_SEGMENTS:
            raise UnreadableImageError(f"image would take too long to read: more than {_MAX_SEGMENTS} JPEG segments")
        return marker, place + 2

    def _segment(self, marker: int, body: bytes) -> None:
        if marker in _REFUSED:
            raise UnreadableImageError(f"unsupported JPEG: {_REFUSED[marker]}")
        if marker in _FRAMES:
            self._frame(body, _FRAMES[marker])
        elif marker == _DHT:
            self._shortest.update(_shortest_codes(body))
        elif marker == _DRI:
            self._interval = struct.unpack(">H", body)[0]
        elif marker == _APP14 and body.startswith(b"Adobe"):
            self.found.adobe = True
        elif marker == _APP1 and body.startswith((b"Exif\0", b"http://ns.adobe.com/xap/")):
            self.found.turned = True
        elif marker == _APP2 and body.startswith(b"MPF\0"):
            self.found.pictures = body[4:]

    def _frame(self, body: bytes, kind: str) -> None:
        bits, height, width, count = struct.unpack(">BHHB", body[:6])
        if self.components:
            raise UnreadableImageError("image is corrupt: a JPEG with two frames")
        if bits != 8:
            raise UnreadableImageError(f"unsupported JPEG: {bits} bits per sample, expected 8")
        if count not in {1, 3, 4} or len(body) != 6 + 3 * count:
            raise UnreadableImageError(f"unsupported JPEG: {count} colours, expected 1, 3 or 4")
        found = self.found
        found.width, found.height, found.components = width, height, count
        found.sequential = kind != "progressive"
        for number in range(count):
            name, factors, _ = body[6 + 3 * number : 9 + 3 * number]
            across, down = factors >> 4, factors & 15
            if not (1 <= across <= 4 and 1 <= down <= 4) or name in self.components:
                raise UnreadableImageError("image is corrupt: a JPEG's colours are not described")
            self.components[name] = _Component(across, down)
        if not 0 < width * height <= MAX_PIXELS:
            raise (
                TooLargeImageError(too_large_text(width, height))
                if width * height
                else UnreadableImageError("image is corrupt: a JPEG without a size")
            )

    def _scan(self, data: bytes, body: bytes, start: int) -> int:
        """Check a scan whose entropy-coded data start at `start`; return the place of the next marker."""
        count = body[0]
        if not self.components or not 1 <= count <= len(self.components) or len(body) != 4 + 2 * count:
            raise UnreadableImageError("image is corrupt: a JPEG scan without known colours")
        names, tables = body[1 : 1 + 2 * count : 2], body[2 : 2 + 2 * count : 2]
        if len(set(names)) != count or not set(names) <= set(self.components):
            raise UnreadableImageError("image is corrupt: a JPEG scan of unknown colours")
        first, last, bits = body[-3:]
        self._progress(names, first, last, bits)
        match = (_MARKER if self._interval else _MARKER_OR_RESTART).search(data, start)
        if match is None:
            raise UnreadableImageError("image is corrupt or truncated: JPEG without an end (EOI)")
        found, end = self.found, match.start()
        units, blocks = self._blocks(names)
        self._check_length(end - start, blocks, self._least_bits(names, tables, first, bits >> 4))
        if self._interval:
            found.restarts = True
            due = -(-units // self._interval) - 1
            seen = sum(1 for _ in islice(_RESTART.finditer(data, start, end), due))
            if seen < due:
                raise UnreadableImageError(
                    f"image is corrupt or truncated: {seen:,} of {due:,} restart markers of a JPEG"
                )
        found.scans.append((start, end))
        found.work += sum(blocks.values()) * 64
        check_work(found.work)
        if len(found.scans) > _MAX_SCANS:
            raise UnreadableImageError(f"image would take too long to decode: more than {_MAX_SCANS} JPEG scans")
        return end

    def _progress(self, names: bytes, first: int, last: int, bits: int) -> None:
        """Record the coefficients and bits of a scan; they must follow the earlier scans."""
        high, low = bits >> 4, bits & 15
        if self.found.sequential:
            # libjpeg also assumes these values, whatever a sequential scan states.
            first, last, high, low = 0, 63, 0, 0
        elif last > 63 or first > last or (first == 0) != (last == 0) or (first and len(names) > 1):
            raise UnreadableImageError("image is corrupt: a JPEG scan of impossible coefficients")
        count = last + 1 - first
        due, sent = [high or None] * count, [low] * count
        for name in names:
            lowest = self.components[name].lowest
            if lowest[first : last + 1] != due or (high and low != high - 1):
                raise UnreadableImageError("image is corrupt: a JPEG's scans repeat or don't follow one another")
            lowest[first : last + 1] = sent

    def _blocks(self, names: bytes) -> tuple[int, dict[int, int]]:
        """Return the number of units (MCUs) of a scan, and of 8 × 8 blocks of each colour."""
        found, parts = self.found, self.components.values()
        across, down = max([one.across for one in parts]), max([one.down for one in parts])
        if len(names) > 1:
            units = -(-found.width // (8 * across)) * -(-found.height // (8 * down))
            blocks = {name: units * self.components[name].across * self.components[name].down for name in names}
            return units, blocks
        one = self.components[names[0]]
        width, height = -(-found.width * one.across // across), -(-found.height * one.down // down)
        units = -(-width // 8) * -(-height // 8)
        return units, {names[0]: units}

    def _least_bits(self, names: bytes, tables: bytes, first: int, high: int) -> dict[int, int]:
        """Return the fewest bits of a block of each colour, by the shortest codes of its tables."""
        if not self.found.sequential and (first or high):
            # A run can leave many blocks unchanged; a refined first coefficient takes one bit.
            return dict.fromkeys(names, 0 if first else 1)
        bits = {}
        for name, numbers in zip(names, tables, strict=True):
            try:
                bits[name] = self._shortest[numbers >> 4]
                if self.found.sequential:
                    bits[name] += self._shortest[0x10 | (numbers & 15)]
            except KeyError as error:
                raise UnreadableImageError("image is corrupt: a JPEG scan without its Huffman table") from error
        return bits

    def _check_length(self, size: int, blocks: dict[int, int], bits: dict[int, int]) -> None:
        least = sum(number * bits[name] for name, number in blocks.items()) // 8
        if size < least:
            raise UnreadableImageError(
                f"image is truncated: a JPEG scan of {size:,} bytes, but {self.found.width} x {self.found.height} "
                f"pixels take at least {least:,}"
            )

    def check_complete(self) -> None:
        """Check that every coefficient of every colour is complete."""
        for one in self.components.values():
            if one.lowest == _COMPLETE:
                continue
            if any(one.lowest):
                raise UnreadableImageError("image is truncated: the last scans of a progressive JPEG are missing")
            raise UnreadableImageError("image is truncated: a JPEG without the scans of all its colours")


@functools.lru_cache(maxsize=64)
def _shortest_codes(tables: bytes) -> dict[int, int]:
    """Return the shortest code length of each Huffman table; cached, as most files share their tables."""
    place, shortest = 0, {}
    while place < len(tables):
        name, counts = tables[place], tables[place + 1 : place + 17]
        total = sum(counts)
        if len(counts) < 16 or not 0 < total <= 256 or place + 17 + total > len(tables):
            raise UnreadableImageError("image is corrupt: a JPEG's Huffman table is broken")
        # Counts of codes by length; the counts of the shortest lengths are zero.
        shortest[name] = 17 - len(counts.lstrip(b"\0"))
        place += 17 + total
    return shortest


def with_more_data(data: bytes, scans: Sequence[tuple[int, int]], junk: bytes) -> bytes:
    """Return the JPEG with `junk` after the entropy-coded data of each interval of each scan.

    A decoder skips it if the data are complete, and decodes it otherwise, which changes the pixels.
    """
    parts, place = [], 0
    for start, end in scans:
        parts += [data[place:start], _RESTART.sub(lambda match: junk + match.group(), data[start:end]), junk]
        place = end
    return b"".join([*parts, data[place:]])


def _check_pictures(data: bytes, scan: JpegScan) -> None:
    """Check that no other independent picture follows the first (CIPA DC-007)."""
    if not scan.pictures:
        if data[scan.end : scan.end + 3] == b"\xff\xd8\xff":
            raise UnreadableImageError("a JPEG with several pictures: save the wanted one alone")
        return
    try:
        kinds = _picture_kinds(scan.pictures)
    except (struct.error, ValueError) as error:
        raise UnreadableImageError("image is corrupt: a JPEG's index of pictures can't be read") from error
    # Thumbnails (1) belong to the primary picture (3). So do gain maps, which have no kind but a name.
    gain_map = any(data.find(name, scan.end) >= 0 for name in _GAIN_MAPS)
    if [kind for kind in kinds[1:] if kind >> 16 != 1 and not (kind == 0 and gain_map)]:
        raise UnreadableImageError(f"a JPEG with {len(kinds)} pictures: save the wanted one alone")


def _picture_kinds(index: bytes) -> list[int]:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(index[:4])
    if order is None:
        raise ValueError("no byte order")
    (place,) = struct.unpack_from(order + "I", index, 4)
    (count,) = struct.unpack_from(order + "H", index, place)
    for number in range(min(count, 64)):
        tag, _, size, offset = struct.unpack_from(order + "HHII", index, place + 2 + 12 * number)
        if tag == 0xB002:
            entries = range(min(size, 1600) // 16)
            return [struct.unpack_from(order + "I", index, offset + 16 * entry)[0] & 0xFFFFFF for entry in entries]
    raise ValueError("no entries")
