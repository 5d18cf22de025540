"""Limits on the size and cost of encoded images, and the errors for refused ones."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "Structure",
    "TooLargeImageError",
    "UnreadableImageError",
    "check_size",
    "check_work",
    "too_large_text",
]

# 64 megapixels decode to 192 MB. A larger image is a slide, which is read by tiles, or a decompression bomb.
MAX_PIXELS = 64_000_000
# Fewer than 8 × 8 pixels have nothing to classify.
MIN_SIDE = 8
# Most pixels that a decoder may visit; a progressive JPEG of MAX_PIXELS with the usual ten scans stays below.
_MAX_WORK = 25 * MAX_PIXELS


class UnreadableImageError(ValueError):
    """The bytes are not an image, or the image is truncated, too large, too small or of an unsupported kind."""


class TooLargeImageError(UnreadableImageError):
    """The image has too many pixels to decode at once; it can be read by tiles."""


class Structure(NamedTuple):
    """Structure of an encoded image, read without decoding it.

    Attributes:
        kind: Name of the file format.
        width: Stored width in pixels, before the orientation is applied.
        height: Stored height in pixels, before the orientation is applied.
        work: Upper bound of the pixels that the decoder visits; each scan of a JPEG visits a pixel again.
        bits: Bits per sample.
        stated_bits: Significant bits per sample, as stated in the file.
        number: Kind of the samples: `u` unsigned, `i` signed, `f` floating point.
        about: Description of the pixel format, for messages.
        turned: True if metadata that may state an orientation are present.
        clean: Bytes to decode, without unneeded compressed metadata; empty if that is the whole file.
        streams: JPEG of each strip or tile of a JPEG-compressed TIFF, with the column and row where it ends.
        scans: Start and end of the entropy-coded data of each scan of a JPEG.
        restarts: True if a JPEG has restart markers.
        sequential: True if a JPEG has all of its pixels in one scan.
        apart: True if a server decodes the image in a separate process, because a decoder may crash.
    """

    kind: str
    width: int
    height: int
    work: int
    bits: int = 8
    stated_bits: int = 16
    number: str = "u"
    about: str = ""
    turned: bool = True
    clean: bytes = b""
    streams: tuple[tuple[tuple[int, int], bytes], ...] = ()
    scans: tuple[tuple[int, int], ...] = ()
    restarts: bool = False
    sequential: bool = False
    apart: bool = False


def too_large_text(width: int, height: int) -> str:
    """Return the message for an image with more than `MAX_PIXELS`."""
    return f"image of {width} x {height} pixels is too large: at most {MAX_PIXELS:,} pixels are decoded"


def check_size(width: int, height: int) -> None:
    """Check that an image of this size can be decoded.

    Raises:
        TooLargeImageError: the image has more than `MAX_PIXELS`.
        UnreadableImageError: the image has fewer than `MIN_SIDE` pixels on a side.
    """
    if width * height > MAX_PIXELS:
        raise TooLargeImageError(too_large_text(width, height))
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError(
            f"image of {width} x {height} pixels is too small: at least {MIN_SIDE} x {MIN_SIDE} are needed"
        )


def check_work(work: int) -> None:
    """Check that decoding an image visits no more pixels than usual images need.

    Raises:
        UnreadableImageError: decoding would visit too many pixels.
    """
    if work > _MAX_WORK:
        raise UnreadableImageError(f"image would take too long to decode: {work:,} pixel visits, at most {_MAX_WORK:,}")
