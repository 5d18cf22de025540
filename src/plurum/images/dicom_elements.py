"""Data elements of DICOM files (PS3.5), read without recursion and within limits.

Messages name tags and never values, which may identify a patient.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .image_limits import UnreadableImageError

__all__ = ["PIXEL_DATA", "SHORT", "TAG_NAMES", "Element", "ElementReader", "fault_at", "tag_text"]

PIXEL_DATA = 0x7FE00010
# Keywords of the elements that the pixels depend on (PS3.6).
TAG_NAMES = {
    0x00020010: "TransferSyntaxUID",
    0x00080016: "SOPClassUID",
    0x00100020: "PatientID",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280006: "PlanarConfiguration",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    0x00281050: "WindowCenter",
    0x00281051: "WindowWidth",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    0x00281056: "VOILUTFunction",
    0x00281101: "RedPaletteColorLookupTableDescriptor",
    0x00281102: "GreenPaletteColorLookupTableDescriptor",
    0x00281103: "BluePaletteColorLookupTableDescriptor",
    0x00281201: "RedPaletteColorLookupTableData",
    0x00281202: "GreenPaletteColorLookupTableData",
    0x00281203: "BluePaletteColorLookupTableData",
    0x00281221: "SegmentedRedPaletteColorLookupTableData",
    0x00281222: "SegmentedGreenPaletteColorLookupTableData",
    0x00281223: "SegmentedBluePaletteColorLookupTableData",
    0x00283000: "ModalityLUTSequence",
    0x00283002: "LUTDescriptor",
    0x00283006: "LUTData",
    0x00283010: "VOILUTSequence",
    0x00289132: "FrameVOILUTSequence",
    0x00289145: "PixelValueTransformationSequence",
    0x52009229: "SharedFunctionalGroupsSequence",
    0x52009230: "PerFrameFunctionalGroupsSequence",
    PIXEL_DATA: "PixelData",
}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# Value representations with a length of 2 bytes, and with one of 4 bytes.
SHORT = frozenset(
    (
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FD",
        "FL",
        "IS",
        "LO",
        "LT",
        "PN",
        "SH",
        "SL",
        "SS",
        "ST",
        "TM",
        "UI",
        "UL",
        "US",
    )
)
_LONG = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
# Levels of sequences in sequences; images have up to six.
_MAX_DEPTH = 16
# Headers that are read of a file; the longest, of enhanced images, have some 60 per frame.
_FEW_HEADERS, _HEADER_BYTES = 10_000, 256


class Element(NamedTuple):
    """Data element of a DICOM file.

    Attributes:
        tag: Group and element number, as one number.
        vr: Value representation; empty if the file does not state it.
        start: Offset of the value.
        end: Offset of the value's end; -1 for encapsulated pixel data.
    """

    tag: int
    vr: str
    start: int
    end: int


def tag_text(tag: int) -> str:
    """Return a tag as text: `Rows (0028,0010)`."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return f"{TAG_NAMES[tag]} {number}" if tag in TAG_NAMES else number


def fault_at(tag: int, text: str) -> UnreadableImageError:
    """Return the error of a DICOM image whose element `tag` is at fault."""
    return UnreadableImageError(f"DICOM: {tag_text(tag)}: {text}")


class ElementReader:
    """Reader of the data elements of a file.

    Args:
        data: Content of the file.
        explicit: True if elements state their value representation.
        big: True if numbers are big-endian.
    """

    def __init__(self, data: bytes, *, explicit: bool, big: bool = False) -> None:
        self.data = data
        self.explicit = explicit
        self.order = ">" if big else "<"
        self._left = _FEW_HEADERS + len(data) // _HEADER_BYTES
        self._two, self._tag_size = struct.Struct(self.order + "HH"), struct.Struct(self.order + "HHI")

    def elements(self, start: int, end: int, *, explicit: bool | None = None) -> Iterator[Element]:
        """Yield the elements between two offsets, without those inside sequences; the last is `PIXEL_DATA`.

        Raises:
            UnreadableImageError: an element is truncated, has an unknown value representation or is nested too deep,
                or there are too many.
        """
        explicit = self.explicit if explicit is None else explicit
        while start + 8 <= end:
            tag, vr, value, length = self._header(start, end, explicit=explicit)
            if length != _UNDEFINED:
                start = value + length
                if start > end:
                    raise fault_at(tag, "reaches beyond the end of the file, which is truncated or corrupt")
                yield Element(tag, vr, value, start)
            elif tag == PIXEL_DATA:
                yield Element(tag, vr, value, -1)
            else:
                start = self._skip(tag, value, end, explicit=explicit and vr != "UN", in_item=False)
                yield Element(tag, vr, value, start - 8)
            if tag == PIXEL_DATA:
                return

    def items(self, sequence: Element) -> Iterator[tuple[int, int]]:
        """Yield the start and the end of the content of each item of a sequence, or of each fragment of pixel data.

        Raises:
            UnreadableImageError: an item is truncated or not an item.
        """
        place, end = sequence.start, len(self.data) if sequence.end < 0 else sequence.end
        while place + 8 <= end:
            tag, length = self._delimiter(place)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise fault_at(sequence.tag, "has something else where an item is expected")
            place += 8
            if length == _UNDEFINED:
                explicit = self.explicit and sequence.vr != "UN"
                after = self._skip(sequence.tag, place, end, explicit=explicit, in_item=True)
                yield place, after - 8
                place = after
            elif place + length > end:
                break
            else:
                yield place, place + length
                place += length
        if sequence.end < 0 or place + 8 <= end:
            raise fault_at(sequence.tag, "is truncated: an item reaches beyond its end")

    def numbers(self, value: bytes, form: str = "H") -> tuple[int, ...]:
        """Return the numbers of a value; `form` is their struct format."""
        size = struct.calcsize(form)
        return struct.unpack(f"{self.order}{len(value) // size}{form}", value[: len(value) // size * size])

    def _header(self, place: int, end: int, *, explicit: bool) -> tuple[int, str, int, int]:
        """Return tag, value representation, offset of the value, and its length."""
        self._spend()
        group, element = self._two.unpack_from(self.data, place)
        tag = group << 16 | element
        if not explicit or group == 0xFFFE:
            return tag, "", place + 8, self._tag_size.unpack_from(self.data, place)[2]
        vr = bytes(self.data[place + 4 : place + 6]).decode("latin-1")
        if vr in SHORT:
            return tag, vr, place + 8, struct.unpack_from(self.order + "H", self.data, place + 6)[0]
        if vr not in _LONG:
            raise fault_at(tag, "has an unknown value representation (VR)")
        if place + 12 > end:
            raise fault_at(tag, "is truncated")
        return tag, vr, place + 12, struct.unpack_from(self.order + "I", self.data, place + 8)[0]

    def _delimiter(self, place: int) -> tuple[int, int]:
        self._spend()
        group, element, length = self._tag_size.unpack_from(self.data, place)
        return group << 16 | element, length

    def _skip(self, tag: int, place: int, end: int, *, explicit: bool, in_item: bool) -> int:
        """Return the offset after the end mark of a sequence, or of an item, of undefined length."""
        levels = [(in_item, explicit)]
        while levels:
            if len(levels) > 2 * _MAX_DEPTH:
                raise fault_at(tag, f"has sequences nested in more than {_MAX_DEPTH} levels")
            if place + 8 > end:
                raise fault_at(tag, "has no end; the file is truncated or corrupt")
            in_item, explicit = levels[-1]
            found, length = self._delimiter(place)
            if found == (_ITEM_END if in_item else _SEQUENCE_END):
                levels.pop()
                place += 8
            elif not in_item:
                if found != _ITEM:
                    raise fault_at(tag, "has something else where an item is expected")
                place += 8
                if length == _UNDEFINED:
                    levels.append((True, explicit))
                else:
                    place += length
            else:
                _, vr, place, length = self._header(place, end, explicit=explicit)
                if length == _UNDEFINED:
                    levels.append((False, explicit and vr != "UN"))
                else:
                    place += length
        return place

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnreadableImageError("DICOM: more data elements than an image of this size has")
