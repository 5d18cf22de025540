from __future__ import annotations

import struct
import sys
import tracemalloc
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plurum.benchmarks.claims.images.dicom import compare, pydicom_files
from plurum.images import UnreadableImageError, open_image, structure_of
from plurum.images.dicom_file import read_heading
from plurum.images.dicom_writer import with_only_pixels
from tests.images.dicom_bombs import deflated_bomb, insert, lying_jpeg, lying_rle, nested
from tests.images.dicom_files import PATIENT_ID, PLANTED, dicom, identifying_values, pydicom
from tests.images.image_files import encoded

RAMP = np.arange(16 * 16, dtype=np.uint16).reshape(16, 16)
DEFLATED, RLE, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"


def pixels(data: bytes, **options: Any) -> Any:
    return np.asarray(open_image(data, **options)).astype(int)


@pytest.mark.slow
def test_files_of_pydicom_equal_the_reference_or_are_refused_by_name() -> None:
    counts: Counter[str] = Counter()
    for path in pydicom_files():
        outcome, text = compare(path)
        counts[outcome] += 1
        assert outcome != "different", (path, text)
        assert not text or "(" in text or "transfer syntax" in text, (path, text)
    # Those of the wheel; pydicom-data has more.
    assert counts["equal"] >= 75
    assert counts["equal, multi-frame"] >= 10


def test_a_window_maps_to_the_full_range() -> None:
    data = dicom(RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[156, 9], WindowWidth=[101, 9])
    # PS3.3, C.11.2.1.2: 106 is black, 206 white.
    expected = np.clip((RAMP * 2.0 - 100 - 155.5) / 100 + 0.5, 0, 1) * 255
    assert np.abs(pixels(data) - expected).max() <= 0.5
    other = pixels(data, window=(0.0, 201.0))
    assert other[0, 0] == 1
    assert other.max() == 255


def test_signed_values_and_inverted_ones() -> None:
    signed = RAMP.astype(np.int16) - 128
    assert pixels(dicom(signed, WindowCenter=0.5, WindowWidth=256))[0, 0] == 0
    dark = pixels(dicom(RAMP, WindowCenter=128, WindowWidth=256, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(dark, 255 - pixels(dicom(RAMP, WindowCenter=128, WindowWidth=256)))


def test_full_range_of_the_stored_bits_without_a_window() -> None:
    stored = RAMP * 16
    np.testing.assert_array_equal(pixels(dicom(stored, BitsStored=12)), np.floor(stored / 4095 * 255 + 0.5).astype(int))
    with pytest.raises(UnreadableImageError, match=r"WindowCenter \(0028,1050\): is missing.*--window"):
        open_image(dicom(stored))
    assert pixels(dicom(stored), window=(2048.0, 4096.0)).max() == 254


def test_bits_above_those_stored_are_ignored() -> None:
    stored = RAMP * 16
    np.testing.assert_array_equal(pixels(dicom(stored | 0xF000, BitsStored=12)), pixels(dicom(stored, BitsStored=12)))


def test_only_pixels_are_left() -> None:
    data = dicom(RAMP, WindowCenter=128, WindowWidth=256)
    only = with_only_pixels(data)
    assert len(identifying_values(data)) == 1 + len(PLANTED)
    assert identifying_values(only) == []
    np.testing.assert_array_equal(pixels(only), pixels(data))
    # Others can read it.
    assert pydicom.dcmread(BytesIO(only)).pixel_array.tolist() == RAMP.tolist()
    assert read_heading(data) == (PATIENT_ID.encode(), 1, b"")
    assert read_heading(only) == (b"", 1, b"")


def test_frames_are_told_apart() -> None:
    frames = np.stack([RAMP, RAMP[::-1]])
    data = dicom(frames, WindowCenter=128, WindowWidth=256)
    with pytest.raises(
        UnreadableImageError, match=r"NumberOfFrames \(0028,0008\): expected an image of 1 frame, got 2"
    ):
        structure_of(data)
    np.testing.assert_array_equal(pixels(with_only_pixels(data, 1)), pixels(with_only_pixels(data, 0))[::-1])
    with pytest.raises(UnreadableImageError, match=r"expected a frame from 0 to 1, got 2"):
        with_only_pixels(data, 2)


def test_a_deflated_file_is_inflated_within_a_limit() -> None:
    data = dicom(RAMP, syntax=DEFLATED, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(pixels(data), pixels(dicom(RAMP, WindowCenter=128, WindowWidth=256)))
    bomb = deflated_bomb()
    assert len(bomb) < 600_000
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=r"99: the data set inflates to more than 67,108,864 bytes"):
        structure_of(bomb)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_sequences_are_bounded() -> None:
    data = dicom(RAMP, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(pixels(nested(data, 10)), pixels(data))
    with pytest.raises(UnreadableImageError, match=r"\(0008,1140\): has sequences nested in more than 16 levels"):
        open_image(nested(data, 3000))
    many = struct.pack("<HH2sH", 0x0008, 0x0008, b"CS", 0) * 200_000
    with pytest.raises(UnreadableImageError, match="more data elements than an image of this size has"):
        open_image(insert(data, many))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "Rows and Columns: image of 60000 x 60000 pixels is too large"),
        ({"Rows": 4}, r"Rows \(0028,0010\) and Columns \(0028,0011\): expected at least 8, got 4 and 16"),
        ({"Rows": 300}, r"PixelData \(7FE0,0010\): is truncated: expected 9,600 bytes, got 512"),
        ({"BitsAllocated": 32}, r"BitsAllocated \(0028,0100\): expected 8 or 16 bits"),
        ({"SamplesPerPixel": 3}, r"SamplesPerPixel \(0028,0002\): expected 1 for MONOCHROME2, got 3"),
        ({"PhotometricInterpretation": "HSV"}, r"PhotometricInterpretation \(0028,0004\): expected MONOCHROME1"),
        ({"WindowWidth": 0, "WindowCenter": 1}, r"WindowWidth \(0028,1051\): expected at least 1 for LINEAR"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, r"RescaleSlope \(0028,1053\): expected a number other than 0"),
        ({"NumberOfFrames": 9_999_999}, r"NumberOfFrames \(0028,0008\): expected a number from 1 to 65,536"),
    ],
)
def test_a_refusal_names_the_tag(elements: dict[str, Any], message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message) as caught:
        open_image(dicom(RAMP, **elements))
    assert PATIENT_ID not in str(caught.value)


def test_lying_compressed_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(UnreadableImageError, match=r"RLE segments are truncated, or too short for 64,000,000 pixels"):
        open_image(lying_rle())
    segments = struct.pack("<16I", 15, 64, *[0] * 14) + bytes(512)
    with pytest.raises(UnreadableImageError, match=r"expected 1 RLE segments, got 15"):
        open_image(dicom(RAMP.astype(np.uint8), syntax=RLE, encoded=segments))
    for syntax, kind in (("50", "JPEG"), ("70", "lossless JPEG"), ("80", "JPEG-LS")):
        with pytest.raises(
            UnreadableImageError, match=rf"4.{syntax}: {kind} of 65000 x 65000 pixels and 1 samples, but"
        ):
            open_image(lying_jpeg(f"1.2.840.10008.1.2.4.{syntax}"))


def test_a_jpeg_that_ends_early_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", quality=90)
    assert np.abs(pixels(dicom(noise, syntax=JPEG, encoded=whole)) - np.asarray(Image.open(BytesIO(whole)))).max() <= 1
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    with pytest.raises(UnreadableImageError, match="truncated"):
        open_image(dicom(noise, syntax=JPEG, encoded=cut))
    assert structure_of(dicom(noise, syntax=JPEG, encoded=whole)).apart


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom.pixels.decoders.base", None)
    with pytest.raises(UnreadableImageError, match=r"Run: pip install 'plurum\[dicom\]'"):
        open_image(dicom(RAMP, WindowCenter=128, WindowWidth=256))
