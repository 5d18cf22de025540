"""WebP, AVIF and JPEG 2000: the pixels of Pillow, and one line for everything else."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from plurum.images import UnreadableImageError, open_image, structure_of, to_eight_bit
from tests.images.image_files import encoded, gradient
from tests.pixel_matrix.tiff_cells import smooth

KINDS = ("WEBP", "AVIF", "JPEG2000")
# An AVIF loses some even at 100: it converts the colours.
LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG2000": {}}
PICTURE = Image.fromarray(smooth())


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(to_eight_bit(open_image(data)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lossless", [True, False])
def test_pixels_are_those_of_pillow(kind: str, lossless: bool) -> None:
    data = encoded(PICTURE, kind, **LOSSLESS[kind] if lossless else {})
    structure = structure_of(data)
    assert (structure.kind, structure.width, structure.height) == (kind, *PICTURE.size)
    # A decoder that may crash runs apart from the server.
    assert structure.apart
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels(data), np.asarray(image))
    if lossless:
        assert np.abs(pixels(data).astype(int) - smooth()).max() <= (5 if kind == "AVIF" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_pixels_are_composited_over_white(kind: str) -> None:
    layer = PICTURE.convert("RGBA")
    layer.putalpha(0)
    assert (pixels(encoded(layer, kind, **LOSSLESS[kind])) == 255).all()


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_the_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PICTURE, kind, exif=exif, **LOSSLESS[kind])
    plain = encoded(PICTURE, kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(pixels(data), np.rot90(pixels(plain), -1))


def test_sixteen_bits_of_jpeg_2000_keep_their_high_byte() -> None:
    values = smooth()[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "JPEG2000")), smooth()[..., 0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(kind: str) -> None:
    data = encoded(PICTURE, kind)
    for size in range(12, len(data), max(1, len(data) // 200)):
        with pytest.raises(UnreadableImageError):
            open_image(data[:size])


@pytest.mark.parametrize("kind", KINDS)
def test_broken_bytes_raise_nothing_else(kind: str) -> None:
    draw = np.random.default_rng(0)
    data = bytearray(encoded(Image.fromarray(gradient()), kind))
    refused = 0
    for _ in range(300):
        broken = data.copy()
        for place in draw.integers(0, len(data), 3):
            broken[place] = draw.integers(256)
        try:
            structure = structure_of(bytes(broken))
            if structure.width * structure.height < 1_000_000:
                pixels(bytes(broken))
        except UnreadableImageError:
            refused += 1
    assert refused > 20


def animated(kind: str) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(90, expand=True).resize(PICTURE.size)])


def large(kind: str) -> bytes:
    """Return an image that claims 16,000 x 16,000 pixels."""
    data = bytearray(encoded(PICTURE, kind))
    width, height = PICTURE.size
    if kind == "WEBP":
        place = data.index(b"\x9d\x01\x2a") + 3
        data[place : place + 4] = (16_000).to_bytes(2, "little") * 2
    else:
        place = data.index(width.to_bytes(4, "big") + height.to_bytes(4, "big"))
        data[place : place + 8] = (16_000).to_bytes(4, "big") * 2
        if kind == "JPEG2000":
            place = data.index(b"\xff\x51") + 6
            data[place : place + 8] = (16_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (animated, "WEBP", "a WEBP with several pictures"),
        (animated, "AVIF", "an AVIF with several pictures"),
        *((large, kind, "16000 x 16000 pixels is too large") for kind in KINDS),
    ],
)
def test_other_images_are_refused_by_name_before_decoding(
    make: Callable[[str], bytes], kind: str, message: str
) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        structure_of(make(kind))


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_a_second_size_is_refused_before_memory_is_allocated(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = bytearray(encoded(PICTURE, kind, **({"exif": exif} if kind == "WEBP" else {})))
    place = data.index(b"VP8X") + 12 if kind == "WEBP" else data.index(b"ihdr") + 4
    data[place : place + (3 if kind == "WEBP" else 4)] = (
        (16_000).to_bytes(3, "little") if kind == "WEBP" else b"\0\0\x3e\x80"
    )
    with pytest.raises(UnreadableImageError, match="headers state two sizes"):
        open_image(bytes(data))


def test_subsampled_channels_of_jpeg_2000_are_refused() -> None:
    data = bytearray(encoded(PICTURE, "JPEG2000"))
    place = data.index(b"\xff\x51") + 2 + 38 + 3
    data[place + 1 : place + 3] = b"\2\2"
    with pytest.raises(UnreadableImageError, match="expected channels of one size"):
        structure_of(bytes(data))
