from __future__ import annotations

import contextlib
import gzip
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plurum.images import (
    MIN_SIDE,
    UnreadableImageError,
    content_box,
    open_image,
    pixels_from_image,
    resizing_from_spec,
    structure_of,
    to_eight_bit,
)
from tests.images.image_files import Pixels, encoded, gradient, png, seen, tiff
from tests.pixel_matrix.png_cells import chunk

# Transformation that a camera applies to the upright pixels before storing, by EXIF number.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = gradient(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))), kind, exif=exif, **options)
    pixels = pixels_from_image(open_image(data), height=24, width=16)
    np.testing.assert_allclose(pixels.astype(int), upright.astype(int), atol=4 if kind == "JPEG" else 0)


def test_broken_exif_leaves_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker's name that does not fit in four bytes"
    good = encoded(Image.fromarray(gradient()), "PNG", exif=exif)
    start = good.index(b"eXIf")
    length = struct.unpack(">I", good[start - 4 : start])[0]
    cut = good[: start - 4] + chunk(b"eXIf", good[start + 4 : start + 4 + 12]) + good[start + 8 + length :]
    np.testing.assert_array_equal(seen(cut), gradient())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_pixels_are_laid_over_white(kind: str) -> None:
    colour = np.full((16, 16, 4), (200, 100, 0, 0), dtype=np.uint8)
    colour[8:, :, 3] = 255
    colour[:, 0, 3] = 128
    pixels = seen(encoded(Image.fromarray(colour), kind))
    assert (pixels[:8, 1:] == 255).all()
    assert (pixels[8:, 1:] == (200, 100, 0)).all()
    np.testing.assert_allclose(pixels[0, 0], (227, 177, 127), atol=1)


def test_transparent_grey_is_laid_over_white() -> None:
    grey = np.zeros((16, 16, 2), dtype=np.uint8)
    grey[8:] = (60, 255)
    pixels = seen(encoded(Image.fromarray(grey, "LA")))
    assert (pixels[:8] == 255).all()
    assert (pixels[8:] == 60).all()


def test_transparent_palette_colours_are_laid_over_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.paste(2, (0, 8, 16, 16))
    pixels = seen(encoded(image, transparency=1))
    assert (pixels[:8] == 255).all()
    assert (pixels[8:] == (40, 50, 60)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    values = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 0x7F
    pixels = seen(encoded(Image.fromarray(values), kind))
    assert (pixels == np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).all()


def test_16_bit_colour_png_keeps_its_high_bytes() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in ((gradient().astype(np.uint16) << 8) + 0x7F).astype(">u2"))
    np.testing.assert_array_equal(seen(png(16, 16, 16, 2, rows)), gradient())


def test_16_bit_colour_tiff_keeps_its_high_bytes() -> None:
    body = ((gradient().astype("<u2") << 8) + 0x7F).tobytes()
    np.testing.assert_array_equal(seen(tiff(16, 16, (16, 16, 16), body)), gradient())


def test_one_bit_is_black_and_white() -> None:
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:, 8:] = 255
    for kind in ("PNG", "TIFF"):
        pixels = seen(encoded(Image.fromarray(half).convert("1"), kind))
        assert (pixels == half[..., None]).all()


def test_palette_becomes_its_colours() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (seen(encoded(image)) == (10, 20, 30)).all()


def test_cmyk_jpeg_becomes_rgb() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(seen(encoded(ink, "JPEG", quality=100)), np.full((16, 16, 3), (255, 0, 0)), atol=3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "RGBX", "I;16"])
def test_every_mode_that_is_taken_can_be_reduced(mode: str) -> None:
    for colour in ("rgb", "grey"):
        pixels = pixels_from_image(Image.new(mode, (20, 20)), height=9, width=8, colour=colour)
        assert pixels.shape == (9, 8, 3)
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "values",
    [
        np.ones((16, 16), np.float32),
        np.full((16, 16), np.nan, np.float32),
        np.full((16, 16), np.inf, np.float32),
        np.ones((16, 16), np.int32),
    ],
)
def test_pixels_without_a_known_range_are_refused(values: Any) -> None:
    with pytest.raises(
        UnreadableImageError, match=r"range is unknown \(TIFF, 32 (signed|floating-point) bits.*--window LOW%,HIGH%"
    ):
        seen(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)])
def test_too_small_is_refused(width: int, height: int) -> None:
    with pytest.raises(UnreadableImageError, match=f"image of {width} x {height} pixels is too small"):
        open_image(encoded(Image.new("RGB", (width, height))))


def test_smallest_is_taken() -> None:
    assert open_image(encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE)))).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize(
    "data",
    [
        # The data are truncated; decoding would report that instead.
        png(20_000, 20_000, 8, 2, b"\0" * 20_000),
        # Few enough for Pillow's own decompression bomb limit.
        png(8001, 8000, 8, 2, b"\0" * 8000),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        tiff(20_000, 20_000, (8,), b"\0" * 20_000),
    ],
    ids=["png", "slightly too large png", "largest png", "tiff"],
)
def test_too_large_is_refused_before_it_is_decoded(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        open_image(data)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(UnreadableImageError, match="too large"):
        open_image(data)
    taken_s = time.perf_counter() - begin
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken_s < 0.1
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_truncated_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    whole = encoded(Image.fromarray(noise), kind, **options)
    assert open_image(whole).size == (64, 64)
    with pytest.raises(UnreadableImageError):
        open_image(whole[: len(whole) // 2])


def test_broken_checksum_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(gradient())))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    with pytest.raises(UnreadableImageError, match="corrupt or truncated"):
        open_image(bytes(data))


@pytest.mark.parametrize("data", [b"", b"a", b"patient,label\n1,CE\n", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"II*\0"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        open_image(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(UnreadableImageError, match="not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image"):
        open_image(encoded(Image.fromarray(gradient()), kind))


def test_compressed_text_does_not_fill_memory() -> None:
    notes = PngInfo()
    notes.add_text("note", "x", zip=True)
    small = encoded(Image.fromarray(gradient()), pnginfo=notes)
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"\0" * 300_000_000))
    start = small.index(b"zTXt") - 4
    data = small[:start] + bomb + small[start:]
    tracemalloc.start()
    with contextlib.suppress(UnreadableImageError):
        seen(data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) < 1_000_000
    assert peak_bytes < 100_000_000


def test_several_pages_are_refused() -> None:
    first, second = Image.fromarray(gradient()), Image.new("RGB", (16, 16), "red")
    with pytest.raises(UnreadableImageError, match="a TIFF with 2 pages: save the wanted one alone"):
        seen(encoded(first, "TIFF", save_all=True, append_images=[second]))


def test_stretch_takes_the_whole_and_crop_its_centre() -> None:
    wide = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    data = encoded(Image.fromarray(wide))
    np.testing.assert_array_equal(seen(data, resize="crop"), wide[:, 16:32])
    stretched = seen(data, resize="stretch")
    assert stretched[0, 0, 0] < 10
    assert stretched[0, -1, 0] > 225


def test_crop_cuts_the_centre_of_a_tall_image_too() -> None:
    tall = gradient(28, 16)
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(tall)), resize="crop"), tall[6:22])


@pytest.mark.parametrize(
    ("rows", "columns", "box"), [(8, 32, (0, 6, 16, 10)), (32, 8, (6, 0, 10, 16)), (9, 13, (0, 2, 16, 13))]
)
def test_pad_keeps_the_aspect_ratio_and_fills_the_sides(rows: int, columns: int, box: tuple[int, ...]) -> None:
    data, fill = encoded(Image.fromarray(gradient(rows, columns))), (10, 200, 30)
    pixels = seen(data, resize="pad", fill=fill)
    left, top, right, bottom = box
    assert content_box((columns, rows), 16, 16) == box
    content = pixels_from_image(open_image(data), width=right - left, height=bottom - top)
    np.testing.assert_array_equal(pixels[top:bottom, left:right], content)
    outside = np.ones((16, 16), dtype=np.bool_)
    outside[top:bottom, left:right] = False
    assert (pixels[outside] == fill).all()


def test_padding_is_what_normalisation_turns_into_0() -> None:
    image = {"height": 16, "width": 16, "colour": "rgb", "resize": "pad", "mean": [0.1, 0.5, 1.0], "std": [1, 1, 1]}
    assert resizing_from_spec(image)["fill"] == (26, 128, 255)
    assert resizing_from_spec(image | {"colour": "grey"})["fill"] == (112,) * 3
    assert "fill" not in resizing_from_spec(image | {"resize": "crop"})


def test_reduction_is_antialiased() -> None:
    """With every second column white, sampling without antialiasing would give black or white, not grey."""
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = seen(encoded(Image.fromarray(stripes)), side=16)
    assert pixels.min() > 100
    assert pixels.max() < 156


def test_grey_is_luminance_in_three_equal_channels() -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert (seen(encoded(red), colour="grey") == 76).all()
    assert (seen(encoded(red), colour="rgb") == (255, 0, 0)).all()
    grey = Image.fromarray(gradient()[..., 0])
    np.testing.assert_array_equal(seen(encoded(grey)), gradient()[..., :1].repeat(3, axis=-1))


def test_height_comes_before_width() -> None:
    assert pixels_from_image(Image.new("RGB", (30, 20)), height=8, width=12).shape == (8, 12, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_window_shows_what_the_high_byte_hides(kind: str) -> None:
    """A lesion of 12-bit values in 16 bits is 128 of 4,096 brighter: 8 of 255 by a window, 1 by the high byte."""
    values = np.random.default_rng(0).integers(1000, 1032, (64, 64)).astype(np.uint16)
    values[16:32, 16:32] += 128
    values[0, 0] = 4095
    lesion = np.zeros((64, 64), np.bool_)
    lesion[16:32, 16:32] = True
    lesion[0, 0] = False
    exif = Image.Exif()
    exif[0x0112] = 8
    data = encoded(Image.fromarray(values), kind)
    turned = encoded(Image.fromarray(values), kind, exif=exif)
    with pytest.raises(UnreadableImageError, match="--window CENTRE,WIDTH"):
        open_image(encoded(Image.fromarray(values >> 4), kind))
    image = open_image(data, window=(2048.0, 4096.0))
    pixels = np.asarray(to_eight_bit(image)).astype(float)
    assert 7.5 < pixels[lesion].mean() - pixels[~lesion].mean() < 8.5
    np.testing.assert_allclose(pixels, (values - 2047.5) / 4095 * 255 + 127.5, atol=0.51)
    upright = np.asarray(to_eight_bit(open_image(turned, window=(2048.0, 4096.0))))
    np.testing.assert_array_equal(upright, np.rot90(pixels.astype(np.uint8)))
    values[0, 0] = 65535
    high = np.asarray(to_eight_bit(open_image(encoded(Image.fromarray(values), kind)))).astype(float)
    assert high[lesion].mean() - high[~lesion].mean() <= 1


def test_a_window_leaves_images_of_eight_bits() -> None:
    data = encoded(Image.fromarray(gradient()))
    assert open_image(data, window=(100.0, 50.0)).tobytes() == open_image(data).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("magic", "place"), [(b"n+1\0", 344), (b"ni1\0", 344), (b"n+2\0", 4)])
def test_nifti_is_refused_in_a_line_that_says_what_to_do(magic: bytes, place: int, compressed: bool) -> None:
    data = bytes(place) + magic + bytes(5000)
    with pytest.raises(
        UnreadableImageError, match=r"^NIfTI is out of scope: save each slice as DICOM, or as PNG or TIFF"
    ):
        structure_of(gzip.compress(data) if compressed else data)
    for other in (b"\x1f\x8b", gzip.compress(b"text"), b"\x1f\x8b" + bytes(400)):
        with pytest.raises(UnreadableImageError, match="that are not a JPEG"):
            structure_of(other)
