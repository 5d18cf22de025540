"""From an encoded image to the pixels a model sees: the one rule for training and serving. NumPy and Pillow only.

Export copies this file beside the preprocess model that runs inside Triton, so that what a member was trained on
and what it is asked about went through the same code.

Legend: `[height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import struct
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, _imaging
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

if TYPE_CHECKING or __package__:
    from plurum.image_structure.image_limits import (
        MAX_PIXELS,
        MIN_SIDE,
        Structure,
        TooLargeImageError,
        UnreadableImageError,
        too_large,
    )
    from plurum.image_structure.jpeg_structure import jpeg_scan, jpeg_structure, structure_from_scan, with_more_data
    from plurum.image_structure.png_structure import has_all_rows, png_structure
    from plurum.image_structure.tiff_structure import tiff_structure
else:
    # Inside Triton they lie beside this file.
    from image_limits import MAX_PIXELS, MIN_SIDE, Structure, TooLargeImageError, UnreadableImageError, too_large
    from jpeg_structure import jpeg_scan, jpeg_structure, structure_from_scan, with_more_data
    from png_structure import has_all_rows, png_structure
    from tiff_structure import tiff_structure

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Structure",
    "TooLargeImageError",
    "UnreadableImageError",
    "eight_bit",
    "is_nearly_black",
    "open_image",
    "pixels_from_image",
    "sized",
    "structure_of",
    "too_large",
]

FORMATS = ("JPEG", "PNG", "TIFF")

_STRUCTURES = (
    ((b"\xff\xd8",), jpeg_structure),
    ((b"\x89PNG\r\n\x1a\n",), png_structure),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff_structure),
)
# By the structure it is known what comes: Pillow need not look for who reads it.
_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
}
# What a decoder of JPEGs makes of it is anything but the grey that it fills up with: made once, by a random generator.
_JUNK = bytes.fromhex("6bd1a94c83e27f15b09c2e57d84361aa1df4c07b3896e5524a8f70c9136db25e")
_ROWS = 256
# 12 bits of 16, by their high bytes.
_NEARLY_BLACK = 16
_HIGH_BYTE_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_EIGHT_BIT_MODES = (
    "L",
    "RGB",
    "RGBA",
    "LA",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "RGBX",
    "RGBa",
    "La",
)


def structure_of(data: bytes) -> Structure:
    """Return what the bytes say of an image, without decoding it.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: not a JPEG, PNG or TIFF, truncated, smaller than `MIN_SIDE` on a side, one that costs more
            to decode than honest images do, that holds several pictures, or of a kind that is not read.
    """
    for starts, structure in _STRUCTURES:
        if data.startswith(starts):
            return structure(data)
    raise UnreadableImageError(f"{len(data)} bytes that are no JPEG, PNG or TIFF image (they begin with {data[:8]!r})")


def open_image(data: bytes, structure: Structure | None = None) -> Image.Image:
    """Return the decoded image of a JPEG, PNG or TIFF.

    What it would cost is known from its structure, and refused, before anything is decoded.

    Args:
        data: The file.
        structure: What `structure_of` returned for it, if that was asked before.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: as for `structure_of`, or the decoder finds it broken.
    """
    structure = structure or structure_of(data)
    image = _decoded(structure.clean or data, structure)
    _check_complete(image, structure.clean or data, structure)
    _check_values(image, structure)
    image.info["turned"] = structure.turned
    return image


def is_nearly_black(image: Image.Image) -> bool:
    """Whether no value of what `eight_bit` returned is above 15 of 255.

    Such are 16-bit files whose values go to 4,095, as cameras of 12 bits leave them: nothing else tells them from
    pictures of the dark.
    """
    return int(np.max(image.getextrema())) < _NEARLY_BLACK


def _decoded(data: bytes, structure: Structure) -> Image.Image:
    _silence_decoders()
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata that does not touch the pixels.
            warnings.simplefilter("ignore")
            image = _READERS[structure.kind](io.BytesIO(data))
            if structure.bits < 8 and image.mode in {"1", "L"} and "transparency" in image.info:
                _scale_transparency(image, structure.bits)
            image.load()
    except SyntaxError as error:
        # Pillow's word for a header that it does not take, though the structure is sound.
        raise UnreadableImageError(f"a {structure.kind} that can't be decoded here ({structure.about})") from error
    # What Pillow's decoders raise on broken files, found by feeding them such.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
    ) as error:
        raise UnreadableImageError(f"image is corrupt or truncated ({structure.about}): {error}") from error
    return image


def _scale_transparency(image: Image.Image, bits: int) -> None:
    """Bring the grey that is transparent to the scale of the pixels, which Pillow spreads over 0 to 255."""
    image.info["transparency"] = (image.info["transparency"] & ((1 << bits) - 1)) * 255 // ((1 << bits) - 1)


def _check_complete(image: Image.Image, data: bytes, structure: Structure) -> None:
    """Make sure that the pixels are those of the file, not what a decoder fills up with where they end too early.

    libtiff notices that by itself, but for the JPEGs in a TIFF.
    """
    if structure.kind == "PNG":
        last = image.crop((0, image.height - 1, image.width, image.height))
        # Rows that are missing are zeros.
        if not any(last.tobytes()) and not has_all_rows(data):
            raise UnreadableImageError("image is truncated: a PNG whose last rows are missing")
    in_one = structure.sequential and not _has_flat_grey(image, image.size, everywhere=structure.restarts)
    if structure.kind == "JPEG" and not in_one:
        _check_stream(image, data, structure)
    for end, stream in structure.streams:
        scan = structure_from_scan(jpeg_scan(stream))
        if structure.turned or not scan.sequential or _has_flat_grey(image, end, everywhere=False):
            _check_stream(_decoded(stream, scan), stream, scan)


def _check_stream(image: Image.Image, data: bytes, structure: Structure) -> None:
    """Make sure that the JPEG `data`, decoded as `image`, has all of its pixels."""
    # A decoder that has all it needs passes over what is added.
    longer = _decoded(with_more_data(data, structure.scans, _JUNK), structure)
    for top in range(0, image.height, _ROWS):
        box = (0, top, image.width, min(top + _ROWS, image.height))
        if image.crop(box).tobytes() != longer.crop(box).tobytes():
            raise UnreadableImageError("image is truncated: the data of a JPEG end before its last pixels")


def _has_flat_grey(image: Image.Image, end: tuple[int, int], *, everywhere: bool) -> bool:
    """Whether the last block of 8 × 8 pixels before `end`, or any, may be the grey that libjpeg fills up with."""
    if not everywhere:
        # Nearly all images are told by their last pixel; of colours, by its first.
        last = image.getpixel((end[0] - 1, end[1] - 1))
        if not 126 <= (last[0] if isinstance(last, tuple) else last or 0) <= 129:
            return False
        left, top = (end[0] - 1) // 8 * 8, (end[1] - 1) // 8 * 8
        return bool(_is_grey(image.crop((left, top, *end))).all())
    across, down = image.width // 8, image.height // 8
    # A pixel of each block tells nearly all of the others.
    middles = image.resize((across, down), Image.Resampling.NEAREST, (0, 0, across * 8, down * 8))
    if not _is_grey(middles).reshape(down, across, -1).all(axis=-1).any():
        return False
    pixels = image.crop((0, 0, across * 8, down * 8))
    return bool(_is_grey(pixels).reshape(down, 8, across, -1).all(axis=(1, 3)).any())


def _is_grey(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Tell where values are 128, give or take what a conversion of colours changes."""
    return np.asarray(np.asarray(image) - np.uint8(126) <= 3)


def _check_values(image: Image.Image, structure: Structure) -> None:
    """Make sure that the pixels' values can be understood.

    Raises:
        UnreadableImageError: a colour that its palette doesn't have, or 16 bits of which the high byte is empty.
    """
    if image.mode == "P" and image.palette is not None:
        most = int(np.asarray(image).max())
        colours = len(image.palette.palette) // len(image.palette.mode)
        if most >= colours:
            raise UnreadableImageError(f"image is corrupt: colour {most} of a palette of {colours}")
    # Where a file says that so many bits count, they are to be the high ones.
    least = max(256, 1 << structure.stated_bits if structure.stated_bits < 16 else 0)
    if structure.bits == 16 and _largest(image) < least:
        raise UnreadableImageError(
            f"image of 16 bits whose values are all below {least:,}, so that it would be dark: scale them up to 65,535"
        )


def _largest(image: Image.Image) -> int:
    """Return the largest value of a 16-bit image, opacity aside; of colours, which Pillow reduces, a lower bound."""
    if image.mode in {*_HIGH_BYTE_MODES, "I"}:
        return int(np.asarray(image).max())
    highest = np.reshape(image.getextrema(), (-1, 2))[:, 1]
    opacity = image.getbands()[-1] in {"A", "a"}
    return int(highest[:-1].max() if opacity else highest.max()) << 8


def pixels_from_image(
    image: Image.Image,
    *,
    height: int,
    width: int,
    colour: Literal["rgb", "grey"] = "rgb",
    resize: Literal["stretch", "crop"] = "stretch",
) -> npt.NDArray[np.uint8]:
    """Return the `[height, width, 3]` pixels a member sees.

    In this order: the EXIF orientation is applied; 16-bit values keep their high byte; transparent pixels are laid
    over white; `grey` reduces to luminance (ITU-R 601-2); the image is brought to size with antialiased bilinear
    interpolation, either as a whole (`stretch`) or cut to the target's shape around its centre first (`crop`).

    Raises:
        UnreadableImageError: pixels that are neither 8- nor 16-bit (32-bit and floating point have no known range).
    """
    return sized(eight_bit(image), height=height, width=width, colour=colour, resize=resize)


def eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` at its own size, upright, 8-bit, opaque: of mode L where it has one channel, else RGB.

    Raises:
        UnreadableImageError: as for `pixels_from_image`.
    """
    return _eight_bit(_upright(image))


def sized(
    image: Image.Image,
    *,
    height: int,
    width: int,
    colour: Literal["rgb", "grey"] = "rgb",
    resize: Literal["stretch", "crop"] = "stretch",
) -> npt.NDArray[np.uint8]:
    """Return the `[height, width, 3]` pixels of what `eight_bit` returned."""
    grey_or_rgb = image.convert("L") if colour == "grey" else image
    size = (width, height)
    # Pillow would copy an image that needs nothing.
    if grey_or_rgb.size == size:
        result = grey_or_rgb
    elif resize == "crop":
        result = ImageOps.fit(grey_or_rgb, size, Image.Resampling.BILINEAR)
    else:
        result = grey_or_rgb.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(result if result.mode == "RGB" else result.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    # Looking for what isn't there takes longer than bringing a small image to size.
    if image.info.get("turned") is False:
        return image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return image
            return ImageOps.exif_transpose(image)
    except (ArithmeticError, AttributeError, OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        # Unreadable metadata says nothing about the orientation; the pixels are whole.
        return image


@functools.cache
def _silence_decoders() -> None:
    """Keep the TIFF decoders from writing to standard error; what matters of that reaches us as exceptions."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    # libtiff does so behind Python's back. A Pillow that was not linked as the wheels are keeps its noise.
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` as RGB or, where it has one channel, as L."""
    if image.mode in _HIGH_BYTE_MODES:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and image.format == "PNG":
        # Older Pillows open 16-bit grey PNGs in this mode.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _EIGHT_BIT_MODES:
        raise UnreadableImageError(
            f"image has pixels of mode {image.mode!r}: 8- or 16-bit grey, palette or colour is needed"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")
