"""DICOM files that hold some elements of another: those which the pixels of a frame depend on, or chosen ones."""

from __future__ import annotations

import struct
from collections.abc import Collection

from .dicom_elements import PIXEL_DATA, SHORT, fault_at
from .dicom_file import BIG, EXPLICIT, IMPLICIT, KEPT, NATIVE, PREAMBLE_BYTES, open_elements, read_dicom, refuse_corrupt

__all__ = ["encapsulate", "with_only_elements", "with_only_pixels"]

_LUT_DESCRIPTOR, _LUT_DATA, _FRAMES, _SYNTAX = 0x00283002, 0x00283006, 0x00280008, 0x00020010
# Largest value of a chosen element, bytes; the standard's longest text without a limit of its own is shorter.
_MAX_VALUE = 1 << 12


@refuse_corrupt()
def with_only_pixels(data: bytes, frame: int = 0) -> bytes:
    """Return a DICOM file with the pixels of a frame that holds only the elements which they depend on.

    Patient, study and device are left out. An uncompressed file becomes explicit, and a deflated one is inflated.

    Raises:
        UnreadableImageError: as for `read_dicom`, or there is no such frame.
    """
    file = read_dicom(data, frame)
    if not 0 <= frame < file.frames:
        raise fault_at(_FRAMES, f"expected a frame from 0 to {file.frames - 1}, got {frame}")
    order, pixels = file.reader.order, file.frame_bytes(frame)
    native = BIG if order == ">" else EXPLICIT
    syntax = native if file.syntax in NATIVE else file.syntax
    elements = {tag: _encode(order, tag, KEPT[tag][0], value) for tag, value in file.values.items()}
    for tag, lut in file.luts.items():
        item = _encode(order, _LUT_DESCRIPTOR, "US", lut.descriptor) + _encode(order, _LUT_DATA, "OW", lut.data)
        elements[tag] = _encode(order, tag, "SQ", struct.pack(order + "HHI", 0xFFFE, 0xE000, len(item)) + item)
    parts = [_beginning(syntax), *(elements[tag] for tag in sorted(elements))]
    if file.pixels.end < 0:
        parts.append(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + encapsulate(pixels))
    else:
        parts.append(_encode(order, PIXEL_DATA, file.pixel_vr, pixels))
    return b"".join(parts)


@refuse_corrupt()
def with_only_elements(data: bytes, tags: Collection[int]) -> bytes:
    """Return a DICOM file without pixels that holds those of the elements `tags` which the file has.

    Of `data`, the beginning suffices. Sequences, and values of more than 4 KiB, are left out.

    Raises:
        UnreadableImageError: the file is corrupt, or `data` end before the last of the elements should come.
    """
    syntax, reader, start = open_elements(data)
    native = BIG if syntax == BIG else EXPLICIT if reader.explicit else IMPLICIT
    parts, last = [_beginning(native)], max(tags)
    for element in reader.elements(start, len(reader.data)):
        if element.tag > last:
            return b"".join(parts)
        if element.tag in tags and element.vr in {"", *SHORT} and element.end - element.start <= _MAX_VALUE:
            parts.append(_encode(reader.order, element.tag, element.vr, reader.data[element.start : element.end]))
    raise fault_at(last, "is missing, and so are all elements after it; the file has no image or is truncated")


def _beginning(syntax: str) -> bytes:
    """Return the preamble and the file meta information."""
    meta = _encode("<", _SYNTAX, "UI", syntax.encode())
    return bytes(PREAMBLE_BYTES) + b"DICM" + _encode("<", 0x00020000, "UL", struct.pack("<I", len(meta))) + meta


def encapsulate(pixels: bytes) -> bytes:
    """Return the items of a compressed frame: an empty table of offsets, one fragment and the end mark."""
    pixels += b"\0" * (len(pixels) % 2)
    head = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(pixels))
    return head + pixels + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _encode(order: str, tag: int, vr: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    group, element = tag >> 16, tag & 0xFFFF
    if not vr:
        return struct.pack(order + "HHI", group, element, len(value)) + value
    if vr in {"OW", "OB", "SQ"}:
        return struct.pack(order + "HH2sHI", group, element, vr.encode(), 0, len(value)) + value
    return struct.pack(order + "HH2sH", group, element, vr.encode(), len(value)) + value
