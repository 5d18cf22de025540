"""DICOM files of several kinds, and faults for them."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.mutations import broken_bytes
from tests.images.dicom_files import dicom
from tests.images.image_files import encoded

__all__ = ["broken_dicom", "dicom_corpus"]

_SYNTAX = "1.2.840.10008.1.2"
_NUMBERS = (0, 1, 2, 3, 7, 16, 255, 4095, 32_767, 65_535)
_LENGTHS = (0, 1, 2, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_VRS = (b"US", b"SS", b"LO", b"OB", b"OW", b"UN", b"SQ", b"DS", b"IS", b"XX", b"\0\0")


def dicom_corpus() -> list[bytes]:
    grey, colour = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32), np.zeros((32, 32, 3), np.uint8)
    jpeg = encoded(Image.fromarray(colour), "JPEG")
    j2k = encoded(Image.fromarray(colour), "JPEG2000", irreversible=False, no_jp2=True)
    lut: dict[str, Any] = {"WindowCenter": 500, "WindowWidth": 1000, "RescaleSlope": 2, "RescaleIntercept": -1024}
    return [
        dicom(grey, **lut),
        dicom(grey, syntax=_SYNTAX, **lut),
        dicom(grey, syntax=f"{_SYNTAX}.1.99", **lut),
        dicom(np.stack([grey, grey]), **lut),
        dicom(colour, syntax=f"{_SYNTAX}.4.50", encoded=jpeg, PhotometricInterpretation="YBR_FULL_422"),
        dicom(colour, syntax=f"{_SYNTAX}.4.90", encoded=j2k),
    ]


def broken_dicom(draw: random.Random, data: bytes) -> bytes:
    """Change a length, a value representation or a number of an element, put sequences into each other, or cut."""
    if len(data) < 200:
        return data
    at = data.find(struct.pack("<H", draw.choice((0x0008, 0x0010, 0x0028, 0x7FE0))), draw.randint(132, len(data) - 12))
    at = at if 0 < at < len(data) - 12 else 140
    changed = bytearray(data)
    action = draw.randrange(6)
    if action == 0:
        struct.pack_into("<I", changed, at + draw.choice((4, 8)), draw.choice(_LENGTHS))
    elif action == 1:
        struct.pack_into("<H", changed, at + 8, draw.choice(_NUMBERS))
    elif action == 2:
        changed[at + 4 : at + 6] = draw.choice(_VRS)
    elif action == 3:
        nested = struct.pack("<HH2sHIHHI", 0x0008, 0x1140, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1)
        changed[at:at] = nested * draw.choice((1, 20, 3000))
    elif action == 4:
        del changed[draw.randint(0, len(changed)) :]
    return broken_bytes(draw, bytes(changed)) if action == 5 else bytes(changed)
