"""DICOM files (PS3.5, PS3.10) with images: the elements that pixels depend on, and nothing that identifies a patient.

All sizes and nesting depths are checked here, before pydicom decodes the pixels of one frame. pydicom never parses the
file itself.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from .dicom_elements import PIXEL_DATA, Element, ElementReader, fault_at
from .image_limits import UnreadableImageError

__all__ = [
    "BIG",
    "ENCAPSULATED",
    "EXPLICIT",
    "IMPLICIT",
    "KEPT",
    "NATIVE",
    "PREAMBLE_BYTES",
    "DicomFile",
    "DicomHeading",
    "Lut",
    "is_dicom",
    "open_elements",
    "read_dicom",
    "read_heading",
    "refuse_corrupt",
]

PREAMBLE_BYTES = 128
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT, EXPLICIT, BIG, _DEFLATED)
# Compressed transfer syntaxes that pydicom's extra `pixeldata` decodes; the kinds are for messages.
ENCAPSULATED = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
    "1.2.840.10008.1.2.4.202": "HTJ2K",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
# An uncompressed image of 64 megapixels with 8 bits.
_MAX_INFLATED = 64 << 20
_SAMPLES, _PHOTOMETRIC, _ROWS, _COLUMNS, _ALLOCATED = 0x00280002, 0x00280004, 0x00280010, 0x00280011, 0x00280100
_ITEM_HEADER = 8
_SYNTAX, _SOP_CLASS, _PATIENT_ID, _FRAMES = 0x00020010, 0x00080016, 0x00100020, 0x00280008
_SERIES = 0x0020000E
_FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_LUTS = (0x00283000, 0x00283010)
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_LIFTED = (0x00289132, 0x00289145)
_WHOLE_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
# Value representations of the elements that pixels depend on, the usual one first.
KEPT: dict[int, tuple[str, ...]] = {
    0x00280002: ("US",),
    0x00280004: ("CS",),
    0x00280006: ("US",),
    0x00280010: ("US",),
    0x00280011: ("US",),
    0x00280100: ("US",),
    0x00280101: ("US",),
    0x00280102: ("US",),
    0x00280103: ("US",),
    0x00281050: ("DS",),
    0x00281051: ("DS",),
    0x00281052: ("DS",),
    0x00281053: ("DS",),
    0x00281056: ("CS",),
    **dict.fromkeys((0x00281101, 0x00281102, 0x00281103), ("US", "SS")),
    **dict.fromkeys((0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223), ("OW", "US")),
}
_READ_TOO = {_SOP_CLASS: ("UI",), _PATIENT_ID: ("LO",), _FRAMES: ("IS",), _SERIES: ("UI",)}
# Largest value of an element that is not a table.
_MAX_VALUE, _MAX_TABLE = 1 << 12, 1 << 18
_MAX_WINDOWS, _MAX_FRAMES = 64, 1 << 16


class Lut(NamedTuple):
    """Look-up table of a sequence, as stored.

    Attributes:
        descriptor: Number of entries, first input value, and bits per entry.
        data: Entries.
    """

    descriptor: bytes
    data: bytes


class DicomHeading(NamedTuple):
    """Patient and frames of a file, or the slide to which it belongs.

    Attributes:
        patient: PatientID (0010,0020) as stored, without padding; empty if it is missing.
        frames: Number of frames.
        slide: SeriesInstanceUID (0020,000E) of a whole-slide image, whose levels are files of one series; empty for
            other images.
    """

    patient: bytes
    frames: int
    slide: bytes = b""


@dataclass(frozen=True)
class DicomFile:
    """Image in a DICOM file.

    Attributes:
        syntax: UID of the transfer syntax of the pixels.
        reader: Reader of the file.
        values: Values of the elements that pixels depend on, by tag.
        luts: Look-up tables of the modality and of the values of interest (VOI), by the tag of their sequence.
        frames: Number of frames.
        pixels: Pixel data.
    """

    syntax: str
    reader: ElementReader
    values: Mapping[int, bytes]
    luts: Mapping[int, Lut]
    frames: int
    pixels: Element

    def number(self, tag: int, default: int | None = None) -> int:
        """Return a number of 16 bits.

        Raises:
            UnreadableImageError: it is missing and has no default, or its value has another size.
        """
        value = self.values.get(tag, b"")
        if not value and default is not None:
            return default
        if len(value) != 2:
            raise fault_at(tag, "expected one number of 2 bytes" if value else "is missing")
        return self.reader.numbers(value)[0]

    def text(self, tag: int) -> str:
        """Return a text without padding; empty if it is missing."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def decimals(self, tag: int) -> tuple[float, ...]:
        """Return decimal numbers; none if they are missing.

        Raises:
            UnreadableImageError: a value is not a finite number.
        """
        text = self.text(tag)
        try:
            found = tuple(float(one) for one in text.split("\\", _MAX_WINDOWS)[:_MAX_WINDOWS]) if text else ()
        except ValueError as error:
            raise fault_at(tag, "expected decimal numbers") from error
        if not all(map(math.isfinite, found)):
            raise fault_at(tag, "expected finite numbers")
        return found

    @property
    def pixel_vr(self) -> str:
        """Value representation of the pixels, on which the order of big-endian bytes depends."""
        return "OB" if self.pixels.vr == "OB" else "OW"

    @property
    def frame_size(self) -> int:
        """Bytes of an uncompressed frame."""
        samples = self.number(_SAMPLES, 1)
        # YBR_FULL_422 shares its colour between two pixels.
        shared = 2 if self.text(_PHOTOMETRIC) == "YBR_FULL_422" and self.syntax in NATIVE else samples
        bits = self.number(_ROWS) * self.number(_COLUMNS) * shared * self.number(_ALLOCATED)
        return -(-bits // 8)

    def frame_bytes(self, frame: int) -> bytes:
        """Return the pixel data of a frame, from 0; compressed ones without the headers of their items.

        Raises:
            UnreadableImageError: the pixel data are truncated, or don't tell where the frame begins.
        """
        data, pixels = self.reader.data, self.pixels
        if pixels.end < 0:
            return b"".join(data[start:end] for start, end in self._fragments(frame))
        start, size = pixels.start + frame * self.frame_size, self.frame_size
        if self.frames > 1 and self.number(_ALLOCATED) == 1 and self.number(_ROWS) * self.number(_COLUMNS) % 8:
            raise fault_at(_ALLOCATED, "frames of 1 bit that share bytes are not supported")
        if pixels.end < start + size:
            expected, got = self.frames * size, pixels.end - pixels.start
            raise fault_at(PIXEL_DATA, f"is truncated: expected {expected:,} bytes, got {got:,}")
        return data[start : start + size]

    def _fragments(self, frame: int) -> list[tuple[int, int]]:
        """Return start and end of the fragments of a compressed frame."""
        found = list(self.reader.items(self.pixels))
        if len(found) < 2:
            raise fault_at(PIXEL_DATA, "has no fragment")
        table, *fragments = found
        if self.frames == 1:
            return fragments
        if len(fragments) == self.frames:
            return [fragments[frame]]
        offsets = struct.unpack(f"<{(table[1] - table[0]) // 4}I", self.reader.data[slice(*table)])
        if len(offsets) != self.frames:
            raise fault_at(PIXEL_DATA, f"{len(fragments)} fragments of {self.frames} frames have no table of offsets")
        # An offset counts from the header of the first fragment.
        first = table[1] + offsets[frame]
        last = table[1] + offsets[frame + 1] if frame + 1 < self.frames else len(self.reader.data)
        return [one for one in fragments if first <= one[0] - _ITEM_HEADER < last]


@contextmanager
def refuse_corrupt() -> Iterator[None]:
    """Turn errors of reading numbers and items into the refusal of the file."""
    try:
        yield
    except (struct.error, IndexError, OverflowError) as error:
        raise UnreadableImageError("DICOM: the file is corrupt or truncated: elements that can't be read") from error


def is_dicom(data: bytes) -> bool:
    """Return True if a file that begins with `data`, of 132 bytes at least, is DICOM."""
    return data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM"


@refuse_corrupt()
def read_dicom(data: bytes, frame: int = 0) -> DicomFile:
    """Return the image in a DICOM file, without decoding it.

    Args:
        data: Content of the file.
        frame: Frame whose values to return, from 0, where they differ by frame.

    Raises:
        UnreadableImageError: the file is truncated, nested too deep, has no image, or has a transfer syntax that is not
            supported. The message names the tag or the transfer syntax.
    """
    syntax, reader, start = open_elements(data)
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        raise UnreadableImageError(f"DICOM: transfer syntax {syntax} is not supported. Convert the file")
    found: dict[int, Element] = {}
    for element in reader.elements(start, len(reader.data)):
        found.setdefault(element.tag, element)
        if element.tag in _FLOAT_PIXELS:
            raise fault_at(element.tag, "expected PixelData (7FE0,0010), got floating-point pixels")
    pixels = found.get(PIXEL_DATA)
    if pixels is None:
        raise fault_at(PIXEL_DATA, "is missing, so the file has no image or is truncated")
    if (pixels.end < 0) != (syntax in ENCAPSULATED):
        raise fault_at(PIXEL_DATA, f"its encapsulation and the transfer syntax {syntax} disagree")
    if _is_slide(reader, found):
        raise fault_at(_SOP_CLASS, "is a whole-slide image, which only plurum predict and predict_slide read, by tiles")
    values = _values(reader, found, frame)
    luts = {tag: lut for tag in _LUTS if tag in found and (lut := _lut(reader, found[tag]))}
    return DicomFile(syntax, reader, values, luts, _frames(reader, found), pixels)


@refuse_corrupt()
def read_heading(data: bytes) -> DicomHeading:
    """Return the patient and the number of frames of a DICOM file, of which the beginning suffices.

    Raises:
        UnreadableImageError: as for `read_dicom`, or `data` end before NumberOfFrames should come.
    """
    _, reader, start = open_elements(data)
    found: dict[int, Element] = {}
    for element in reader.elements(start, len(reader.data)):
        found.setdefault(element.tag, element)
        if element.tag > _FRAMES:
            slide = _value(reader, found, _SERIES) if _is_slide(reader, found) else b""
            return DicomHeading(_value(reader, found, _PATIENT_ID).strip(b" \0"), _frames(reader, found), slide)
    raise UnreadableImageError("DICOM: the file has no image or is truncated")


def open_elements(data: bytes) -> tuple[str, ElementReader, int]:
    """Return the transfer syntax, a reader of the data set, and the offset of the data set.

    Raises:
        UnreadableImageError: the file is not DICOM, or its compressed data set is corrupt, truncated or too large.
    """
    start = PREAMBLE_BYTES + 4
    if not is_dicom(data):
        raise UnreadableImageError("DICOM: expected DICM after a preamble of 128 bytes")
    syntax = ""
    meta = ElementReader(data, explicit=True)
    while data[start : start + 2] == b"\x02\0":
        element = next(meta.elements(start, len(data)), None)
        if element is None:
            break
        if element.tag == _SYNTAX and element.end - element.start <= 64:
            syntax = data[element.start : element.end].rstrip(b"\0 ").decode("latin-1")
        start = element.end
    if not re.fullmatch(r"[0-9.]{1,64}", syntax):
        raise fault_at(_SYNTAX, "is missing or not a UID")
    if syntax == _DEFLATED:
        data, start = _inflate(data[start:]), 0
    return syntax, ElementReader(data, explicit=syntax != IMPLICIT, big=syntax == BIG), start


def _is_slide(reader: ElementReader, found: Mapping[int, Element]) -> bool:
    return _value(reader, found, _SOP_CLASS).rstrip(b"\0 ") == _WHOLE_SLIDE


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(data, _MAX_INFLATED)
    except zlib.error as error:
        raise UnreadableImageError(f"DICOM: transfer syntax {_DEFLATED}: the compressed data are corrupt") from error
    if not inflater.eof:
        what = "is truncated" if len(found) < _MAX_INFLATED else f"inflates to more than {_MAX_INFLATED:,} bytes"
        raise UnreadableImageError(f"DICOM: transfer syntax {_DEFLATED}: the data set {what}")
    return found


def _value(reader: ElementReader, found: Mapping[int, Element], tag: int) -> bytes:
    """Return the value of an element; empty if it is missing."""
    if tag not in found:
        return b""
    element, allowed = found[tag], KEPT.get(tag) or _READ_TOO[tag]
    if element.vr and element.vr not in (*allowed, "UN"):
        raise fault_at(tag, f"expected the value representation {' or '.join(allowed)}, got {element.vr}")
    if element.end - element.start > (_MAX_TABLE if "OW" in allowed else _MAX_VALUE):
        raise fault_at(tag, "is too long")
    return reader.data[element.start : element.end]


def _values(reader: ElementReader, found: Mapping[int, Element], frame: int) -> dict[int, bytes]:
    """Return the kept values; those of functional groups, of enhanced images, come first."""
    values = {tag: _value(reader, found, tag) for tag in KEPT if tag in found}
    for groups, index in ((_SHARED, 0), (_PER_FRAME, frame)):
        inner = _item(reader, found[groups], index) if groups in found else {}
        for sequence in _LIFTED:
            item = _item(reader, inner[sequence]) if sequence in inner else {}
            values |= {tag: _value(reader, item, tag) for tag in KEPT if tag in item}
    return values


def _lut(reader: ElementReader, sequence: Element) -> Lut | None:
    """Return the first look-up table of a sequence; None if it has none."""
    item = _item(reader, sequence)
    if _LUT_DESCRIPTOR not in item or _LUT_DATA not in item:
        return None
    for tag, most in ((_LUT_DESCRIPTOR, 6), (_LUT_DATA, _MAX_TABLE)):
        if item[tag].end - item[tag].start > most:
            raise fault_at(tag, "is too long")
    descriptor, data = (reader.data[item[tag].start : item[tag].end] for tag in (_LUT_DESCRIPTOR, _LUT_DATA))
    return Lut(descriptor, data)


def _item(reader: ElementReader, sequence: Element, index: int = 0) -> dict[int, Element]:
    """Return the elements of an item of a sequence, by tag; none if it is missing."""
    if sequence.vr not in {"", "SQ", "UN"}:
        raise fault_at(sequence.tag, f"expected the value representation SQ, got {sequence.vr}")
    explicit = reader.explicit and sequence.vr != "UN"
    for start, end in islice(reader.items(sequence), index, index + 1):
        return {one.tag: one for one in reader.elements(start, end, explicit=explicit)}
    return {}


def _frames(reader: ElementReader, found: Mapping[int, Element]) -> int:
    text = _value(reader, found, _FRAMES).strip(b" \0") or b"1"
    # Some scanners write 0 for a single frame.
    if not re.fullmatch(rb"\+?[0-9]{1,9}", text) or int(text) > _MAX_FRAMES:
        raise fault_at(_FRAMES, f"expected a number from 1 to {_MAX_FRAMES:,}")
    return max(1, int(text))
