"""Any bytes give pixels or a single error, and nothing is printed or logged."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plurum.images import UnreadableImageError, open_image
from tests.images.image_files import encoded, gradient, seen, tiff


def corpus() -> list[bytes]:
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    notes = PngInfo()
    notes.add_text("note", "text" * 20, zip=True)
    grey_16 = Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257)
    return [
        encoded(image, "JPEG", exif=exif),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, exif=exif, pnginfo=notes, icc_profile=b"profile" * 9, dpi=(72, 72)),
        encoded(image.convert("P"), transparency=3),
        encoded(image.convert("LA")),
        encoded(grey_16),
        encoded(image, "TIFF", exif=exif),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(image.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        encoded(image.convert("P"), "TIFF", compression="packbits"),
        encoded(image.convert("LAB"), "TIFF"),
        encoded(grey_16, "TIFF"),
        encoded(image, "WEBP", exif=exif),
        encoded(image.convert("RGBA"), "WEBP", lossless=True),
        encoded(image, "AVIF", exif=exif),
        encoded(image, "JPEG2000"),
        encoded(grey_16, "JPEG2000"),
    ]


CORPUS = corpus()
_NEWER = (b"RIFF\x40\0\0\0WEBPVP8 ", b"\0\0\0\x14ftypavif", b"\xff\x4f\xff\x51")
EDITS = st.lists(
    st.tuples(
        st.integers(0, 4000),
        st.integers(0, 12),
        st.sampled_from([b"", b"\0", b"\xff", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]) | st.binary(max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, edits: list[tuple[int, int, bytes]], keep: float) -> bytes:
    for place, removed, added in edits:
        at = place % len(data)
        data = (data[:at] + added + data[at + removed :]) or b"\0"
    return data[: max(1, round(len(data) * keep))]


@settings(deadline=None, max_examples=500)
@given(
    seed=st.sampled_from(CORPUS),
    edits=EDITS,
    keep=st.just(1.0) | st.floats(0, 1),
    resize=st.sampled_from(("stretch", "crop")),
)
def test_broken_bytes_raise_nothing_else(
    seed: bytes, edits: list[tuple[int, int, bytes]], keep: float, resize: Literal["stretch", "crop"]
) -> None:
    """Check that no warning is raised either; in tests, warnings are errors."""
    data = mutated(seed, edits, keep)
    if too_many_pixels_for_a_test(data):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = seen(data, side=8, resize=resize)
        except UnreadableImageError:
            return
    assert pixels.shape == (8, 8, 3)


def too_many_pixels_for_a_test(data: bytes) -> bool:
    """Return True for images that are legal but slow to decode: an edited header may say 7,000 × 8,000."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(data)).size
    except Exception:
        return False
    return 1_000_000 < width * height <= 64_000_000


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    for magic in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", *_NEWER):
        with pytest.raises(UnreadableImageError):
            open_image(magic + data)


def test_broken_tiffs_write_nothing_to_standard_error(tmp_path: Path) -> None:
    """Decoders write messages from C, so only another process's standard error shows them."""
    broken: list[bytes] = []
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"):
        image = Image.fromarray(gradient()).convert("1" if compression == "group4" else "RGB")
        data = encoded(image, "TIFF", compression=compression)
        broken += [data[:at] + b"\xff\xff" + data[at + 2 :] for at in range(8, len(data) - 2, 3)]
    (tmp_path / "broken").write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in broken))
    script = """
import struct, sys
from plurum.images import UnreadableImageError, open_image
refused = 0
with open(sys.argv[1], "rb") as file:
    while head := file.read(4):
        try:
            open_image(file.read(struct.unpack("<I", head)[0]))
        except UnreadableImageError:
            refused += 1
print(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "broken")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 50
    assert done.stderr == ""


def test_broken_images_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = tiff(16, 16, (8,), b"\0" * 256)
    many_samples = data.replace(struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 3, 1, 500))
    assert many_samples != data
    with caplog.at_level(logging.WARNING), pytest.raises(UnreadableImageError):
        open_image(many_samples)
    assert caplog.text == ""
