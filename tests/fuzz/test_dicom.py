"""DICOM files, broken at random: pixels or one refusal without the patient, within time and memory.

`PLURUM_FUZZ_SECONDS` and `PLURUM_FUZZ_SEED` as for the others.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from plurum.client.connection.payload import without_patient
from plurum.dicom_files import PatientNames
from plurum.errors import ImageError
from plurum.images import UnreadableImageError, open_image, structure_of
from plurum.images.decoder import Decoder
from tests.fuzz.dicom_mutations import broken_dicom, dicom_corpus
from tests.fuzz.mutations import Fuzz
from tests.images.dicom_files import PATIENT_ID, PATIENT_NAME

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_MOST_S, _MOST_GROWTH = 3.0, 400 << 20


def test_broken_dicom(tmp_path: Path) -> None:
    fuzz, path = Fuzz("DICOM"), tmp_path / "input"
    corpus, names = dicom_corpus(), PatientNames(tmp_path / "key")
    process = psutil.Process()
    before = 0
    decoder = Decoder({"height": 8, "width": 8, "colour": "rgb", "resize": "stretch"}, cpu_s=_MOST_S)
    try:
        for draw in fuzz.draws():
            data = draw.choice(corpus)
            for _ in range(draw.randint(1, 3)):
                data = broken_dicom(draw, data)
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
