"""DICOM files that are small and would cost much memory or time if a decoder or pydicom got them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from tests.images.dicom_files import dicom

__all__ = ["deflated_bomb", "dicom_bombs", "insert", "lying_jpeg", "lying_rle", "nested"]

_GREY = np.zeros((16, 16), np.uint8)


def deflated_bomb() -> bytes:
    """A file of some 522 kB that inflates to 512 MiB."""
    head = dicom(_GREY, syntax="1.2.840.10008.1.2.1.99")
    body = struct.pack("<HH2sHI", 0x0009, 0x0010, b"OB", 0, 1 << 29) + bytes(1 << 29)
    deflater = zlib.compressobj(9, wbits=-15)
    return head[: _data_set(head)] + deflater.compress(body) + deflater.flush()


def lying_rle() -> bytes:
    """A file of 8 kB that states 64 million pixels."""
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    large = np.zeros((8000, 8000), np.uint8)
    return dicom(large, syntax="1.2.840.10008.1.2.5", encoded=header + b"\x81\0" * 3900)


def lying_jpeg(syntax: str) -> bytes:
    """A file of 16 x 16 pixels whose JPEG states 65,000 x 65,000."""
    start = b"\xff\xd8" + struct.pack(">HHBHHB", 0xFFC0, 11, 8, 65000, 65000, 1) + bytes(3) + b"\xff\xd9"
    return dicom(_GREY, syntax=syntax, encoded=start)


def nested(data: bytes, levels: int) -> bytes:
    """Put sequences in each other before the first element."""
    start = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    start += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return insert(data, start * levels + end * levels)


def insert(data: bytes, element: bytes) -> bytes:
    """Put an element before the first."""
    start = _data_set(data)
    return data[:start] + element + data[start:]


def dicom_bombs() -> dict[str, bytes]:
    grey = dicom(_GREY)
    return {
        "deflated": deflated_bomb(),
        "RLE": lying_rle(),
        **{f"JPEG {kind}": lying_jpeg(f"1.2.840.10008.1.2.4.{kind}") for kind in (50, 70, 80)},
        "nested": nested(grey, 3000),
        "elements": insert(grey, struct.pack("<HH2sH", 0x0008, 0x0008, b"CS", 0) * 100_000),
        "rows": dicom(_GREY, Rows=60_000, Columns=60_000),
        "frames": dicom(_GREY, NumberOfFrames=9_999_999),
    }


def _data_set(data: bytes) -> int:
    """Return the offset of the data set, after the file meta information."""
    return 144 + int(struct.unpack_from("<I", data, 140)[0])
