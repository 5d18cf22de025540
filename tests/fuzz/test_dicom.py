"""DICOM files, broken at random: pixels or one refusal without the patient, within time and memory.

`PLURUM_FUZZ_SECONDS` and `PLURUM_FUZZ_SEED` as for the others.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from plurum.client.connection.payload import without_patient
from plurum.dicom_files import PatientNames
from plurum.errors import ImageError
from plurum.images import UnreadableImageError, open_image, structure_of
from plurum.images.decoder import Decoder
from tests.fuzz.mutations import Fuzz, broken_bytes
from tests.images.dicom_files import PATIENT_ID, PATIENT_NAME, dicom
from tests.images.image_files import encoded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_SYNTAX = "1.2.840.10008.1.2"
_NUMBERS = (0, 1, 2, 3, 7, 16, 255, 4095, 32_767, 65_535)
_LENGTHS = (0, 1, 2, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_VRS = (b"US", b"SS", b"LO", b"OB", b"OW", b"UN", b"SQ", b"DS", b"IS", b"XX", b"\0\0")
_MOST_S, _MOST_GROWTH = 3.0, 400 << 20


def _corpus() -> list[bytes]:
    grey, colour = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32), np.zeros((32, 32, 3), np.uint8)
    jpeg = encoded(Image.fromarray(colour), "JPEG")
    j2k = encoded(Image.fromarray(colour), "JPEG2000", irreversible=False, no_jp2=True)
    lut = {"WindowCenter": 500, "WindowWidth": 1000, "RescaleSlope": 2, "RescaleIntercept": -1024}
    return [
        dicom(grey, **lut),
        dicom(grey, syntax=_SYNTAX, **lut),
        dicom(grey, syntax=f"{_SYNTAX}.1.99", **lut),
        dicom(np.stack([grey, grey]), **lut),
        dicom(colour, syntax=f"{_SYNTAX}.4.50", encoded=jpeg, PhotometricInterpretation="YBR_FULL_422"),
        dicom(colour, syntax=f"{_SYNTAX}.4.90", encoded=j2k),
    ]


def _mutate(draw: random.Random, data: bytes) -> bytes:
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


def test_broken_dicom(tmp_path: Path) -> None:
    fuzz, path = Fuzz("DICOM"), tmp_path / "input"
    corpus, names = _corpus(), PatientNames(tmp_path / "key")
    process = psutil.Process()
    before = 0
    decoder = Decoder({"height": 8, "width": 8, "colour": "rgb", "resize": "stretch"}, cpu_s=_MOST_S)
    try:
        for draw in fuzz.draws():
            data = draw.choice(corpus)
            for _ in range(draw.randint(1, 3)):
                data = _mutate(draw, data)
            path.write_bytes(data)
            begin, refusals = time.process_time(), []
            try:
                names.name(path)
                try:
                    without_patient(data, 0)
                except ImageError as error:
                    refusals.append(str(error))
                if structure_of(data).apart:
                    decoder.pixels(data)
                else:
                    open_image(data)
                fuzz.read += 1
            except UnreadableImageError as error:
                refusals.append(str(error))
            except Exception as error:
                raise AssertionError(f"{fuzz}: {error!r:.300} for the {len(data):,} bytes in {path}") from error
            for text in refusals:
                assert text.strip()
                assert "\n" not in text
                assert PATIENT_ID not in text
                assert PATIENT_NAME not in text
            assert time.process_time() - begin < _MOST_S, f"{fuzz}: too slow: {path}"
            before = before or process.memory_info().rss
            assert process.memory_info().rss < before + _MOST_GROWTH, f"{fuzz}: too much memory: {path}"
    finally:
        decoder.close()
    sys.stdout.write(f"{fuzz.inputs - fuzz.read:,} of {fuzz.inputs:,} refused\n")
    assert 0 < fuzz.read < fuzz.inputs
