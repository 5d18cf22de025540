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
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, _imaging

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "TooLargeImageError",
    "UnreadableImageError",
    "eight_bit",
    "open_image",
    "pixels_from_image",
    "sized",
    "too_large",
]

FORMATS = ("JPEG", "PNG", "TIFF")
# 64 megapixels decode to 192 MB: above that, an image is a slide and is read by tiles, or it is a bomb.
MAX_PIXELS = 64_000_000
# There is nothing to classify in fewer than 8 × 8 pixels.
MIN_SIDE = 8

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
)


class UnreadableImageError(ValueError):
    """The bytes are no image, or one that is truncated, too large, too small or of a kind we don't take."""


class TooLargeImageError(UnreadableImageError):
    """More pixels than are decoded at once; such an image is read by tiles."""


def open_image(data: bytes) -> Image.Image:
    """Return the decoded first frame of a JPEG, PNG or TIFF.

    The size is read from the header and refused before anything is decoded.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: not such an image, truncated, or smaller than `MIN_SIDE` on a side.
    """
    _silence_decoders()
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes we refuse below, and of odd metadata that does not touch the pixels.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise TooLargeImageError(too_large(width, height))
            if min(width, height) < MIN_SIDE:
                raise UnreadableImageError(
                    f"image of {width} x {height} pixels is too small: at least {MIN_SIDE} x {MIN_SIDE} are needed"
                )
            image.load()
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeImageError(f"image is too large: at most {MAX_PIXELS:,} pixels are decoded") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{len(data)} bytes that are no JPEG, PNG or TIFF image (they begin with {data[:8]!r})"
        ) from error
    # What Pillow's decoders raise on broken files, found by feeding them such.
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
    ) as error:
        raise UnreadableImageError(f"image is corrupt or truncated: {error}") from error
    return image


def too_large(width: int, height: int) -> str:
    """Return what is said of an image of so many pixels, if they are more than `MAX_PIXELS`."""
    return f"image of {width} x {height} pixels is too large: at most {MAX_PIXELS:,} pixels are decoded"


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return image
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
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
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")
