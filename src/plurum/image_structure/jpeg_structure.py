"""The structure of a JPEG (ITU-T T.81), read without decoding it: what it costs, and whether all of it is there.

libjpeg fills what is missing with grey and repeats what is repeated: both are refused here.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from plurum.image_structure.image_limits import (
        MAX_PIXELS,
        Structure,
        TooLargeImageError,
        UnreadableImageError,
        check_size,
        check_work,
        too_large_text,
    )
else:
    from image_limits import (
        MAX_PIXELS,
        Structure,
        TooLargeImageError,
        UnreadableImageError,
        check_size,
        check_work,
        too_large_text,
    )

__all__ = ["JpegScan", "jpeg_scan", "jpeg_structure", "structure_from_scan", "with_more_data"]

# An encoder writes a dozen; extended XMP and ICC profiles take up to some hundred.
_MAX_SEGMENTS = 1000
# Ten are usual; optimisers write up to some dozens.
_MAX_SCANS = 64
_MAX_FILL = 64
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MARKER_OR_RESTART = re.compile(rb"\xff[^\x00\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SOI, _EOI, _SOS, _DHT, _DRI, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD, 0xE1, 0xE2, 0xEE
# In the metadata of a phone's map of how bright to show its picture.
_GAIN_MAPS = (b"hdrgm:", b"HDRGainMap")
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_REFUSED = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
    0xCB: "lossless",
    0xCC: "arithmetic-coded",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
    0xDC: "with its height at the end (DNL)",
    0xDE: "hierarchical",
    0xDF: "hierarchical",
    0xF7: "JPEG-LS",
}
# What may stand between segments; restart markers and others without a body may not.
_KNOWN = {*range(0xC0, 0xD0), *range(0xD9, 0xF0), 0xF7, 0xFE}
_COMPLETE = [0] * 64


@dataclass(slots=True)
class _Component:
    across: int
    down: int
    # Of each coefficient, the lowest bit that was sent; None before its first scan.
    lowest: list[int | None] = field(default_factory=lambda: [None] * 64)


@dataclass
class JpegScan:
    """What was found in one JPEG stream.

    Attributes:
        width: Pixels.
        height: Pixels.
        components: Their number.
        work: Pixels that are visited, once per scan.
        sequential: Whether it is baseline or extended, not progressive.
        scans: Where the entropy-coded data of each scan begins and ends.
        end: Behind its last byte.
        restarts: Whether it has restart markers.
        adobe: Whether it has Adobe's marker, by which colours of four components are understood.
        turned: Whether EXIF or XMP is there, which may state an orientation.
        pictures: The payload of its multi-picture index; empty without one.
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
        TooLargeImageError: more than `MAX_PIXELS`.
        UnreadableImageError: it is truncated, costs more than honest images do, holds several pictures, or is of a
            kind that is not read, which is named.
    """
    scan = jpeg_scan(data)
    check_size(scan.width, scan.height)
    if scan.components == 4 and not scan.adobe:
        raise UnreadableImageError("JPEG of 4 colours without Adobe's marker: how to read its colours is not known")
    _check_pictures(data, scan)
    return structure_from_scan(scan)


def structure_from_scan(scan: JpegScan) -> Structure:
    """Return the structure of a stream."""
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
    """Return what one JPEG stream holds; it may go on behind its end.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS`.
        UnreadableImageError: as for `jpeg_structure`.
    """
    reader = _Reader()
    reader.read(data)
    if not reader.found.scans:
        raise UnreadableImageError("image is corrupt or truncated: a JPEG without pixels")
    reader.check_complete()
    return reader.found


class _Reader:
    """Walks a stream from marker to marker."""

    def __init__(self) -> None:
        self.found = JpegScan()
        self.components: dict[int, _Component] = {}
        self._shortest: dict[int, int] = {}
        self._interval = 0
        self._segments = 0

    def read(self, data: bytes) -> None:
        if data[:2] != b"\xff\xd8":
            raise UnreadableImageError("image is corrupt: JPEG data that do not begin as such")
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
        """Return the marker at `place`, and where it ends."""
        start = place
        while data.startswith(b"\xff\xff", place):
            place += 1
            if place - start > _MAX_FILL:
                raise UnreadableImageError("image is corrupt: padding without end between JPEG segments")
        if place + 2 > len(data):
            raise UnreadableImageError("image is corrupt or truncated: JPEG without an end (EOI)")
        marker = data[place + 1]
        if data[place] != 0xFF or marker not in _KNOWN:
            raise UnreadableImageError(
                f"image is corrupt: bytes {data[place : place + 2]!r} where a JPEG marker belongs"
            )
        self._segments += 1
        if self._segments > _MAX_SEGMENTS:
            raise UnreadableImageError(f"image would take too long to read: more than {_MAX_SEGMENTS} JPEG segments")
        return marker, place + 2

    def _segment(self, marker: int, body: bytes) -> None:
        if marker in _REFUSED:
            raise UnreadableImageError(f"a JPEG that is not read here: {_REFUSED[marker]}")
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
            raise UnreadableImageError(f"a JPEG that is not read here: {bits} bits per sample, 8 are read")
        if count not in {1, 3, 4} or len(body) != 6 + 3 * count:
            raise UnreadableImageError(f"a JPEG that is not read here: {count} colours; 1, 3 or 4 are read")
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
        """Check a scan whose entropy-coded data begin at `start`; return where the next marker is."""
        count = body[0]
        if not self.components or not 1 <= count <= len(self.components) or len(body) != 4 + 2 * count:
            raise UnreadableImageError("image is corrupt: a JPEG scan of no known colours")
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
        """Note which coefficients a scan brings, and to which bit; each must be the next."""
        high, low = bits >> 4, bits & 15
        if self.found.sequential:
            # libjpeg, too, takes these for granted, whatever a sequential scan says.
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
        """Return how many units (MCUs) a scan has, and how many blocks of 8 × 8 of each colour."""
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
        """Return how many bits a block of each colour takes at least, by the shortest codes of its tables."""
        if not self.found.sequential and (first or high):
            # A run can say of many blocks that nothing changes; a refined first coefficient is one bit.
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
                f"image is truncated: a JPEG scan of {size:,} bytes, and {self.found.width} x {self.found.height} "
                f"pixels take at least {least:,}"
            )

    def check_complete(self) -> None:
        """Make sure that every coefficient of every colour was sent to its last bit."""
        for one in self.components.values():
            if one.lowest == _COMPLETE:
                continue
            if any(one.lowest):
                raise UnreadableImageError("image is truncated: the last scans of a progressive JPEG are missing")
            raise UnreadableImageError("image is truncated: a JPEG without the scans of all its colours")


@functools.lru_cache(maxsize=64)
def _shortest_codes(tables: bytes) -> dict[int, int]:
    """Return the length of the shortest code of each of the Huffman tables; most files have the same."""
    place, shortest = 0, {}
    while place < len(tables):
        name, counts = tables[place], tables[place + 1 : place + 17]
        total = sum(counts)
        if len(counts) < 16 or not 0 < total <= 256 or place + 17 + total > len(tables):
            raise UnreadableImageError("image is corrupt: a JPEG's Huffman table is broken")
        # By length, how many codes there are; none of the shortest lengths.
        shortest[name] = 17 - len(counts.lstrip(b"\0"))
        place += 17 + total
    return shortest


def with_more_data(data: bytes, scans: Sequence[tuple[int, int]], junk: bytes) -> bytes:
    """Return the JPEG with `junk` behind the entropy-coded data of each interval of each scan.

    A decoder that had enough data skips it, one that hadn't decodes it: only then the pixels differ.
    """
    parts, place = [], 0
    for start, end in scans:
        parts += [data[place:start], _RESTART.sub(lambda match: junk + match.group(), data[start:end]), junk]
        place = end
    return b"".join([*parts, data[place:]])


def _check_pictures(data: bytes, scan: JpegScan) -> None:
    """Make sure that what follows the first picture is none of its own (CIPA DC-007).

    Raises:
        UnreadableImageError: a panorama, a stereo pair, or pictures one after the other.
    """
    if not scan.pictures:
        if data[scan.end : scan.end + 3] == b"\xff\xd8\xff":
            raise UnreadableImageError("a JPEG that holds several pictures: save the one that is meant alone")
        return
    try:
        kinds = _picture_kinds(scan.pictures)
    except (struct.error, ValueError) as error:
        raise UnreadableImageError("image is corrupt: a JPEG's index of pictures can't be read") from error
    # Thumbnails (1) belong to the primary picture (3), and so do gain maps, which have no kind and say what they are.
    gain_map = any(data.find(name, scan.end) >= 0 for name in _GAIN_MAPS)
    if [kind for kind in kinds[1:] if kind >> 16 != 1 and not (kind == 0 and gain_map)]:
        raise UnreadableImageError(f"a JPEG that holds {len(kinds)} pictures: save the one that is meant alone")


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
