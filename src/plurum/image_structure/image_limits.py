"""What an encoded image may be and cost, and the errors for those that are refused.

Export copies this file, the structure modules and `images.py` beside the preprocess model that runs inside Triton.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

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

# 64 megapixels decode to 192 MB: above that, an image is a slide and is read by tiles, or it is a bomb.
MAX_PIXELS = 64_000_000
# There is nothing to classify in fewer than 8 × 8 pixels.
MIN_SIDE = 8
# Pixels that a decoder may visit: a progressive JPEG of MAX_PIXELS with the ten scans that encoders write stays below.
_MAX_WORK = 25 * MAX_PIXELS


class UnreadableImageError(ValueError):
    """The bytes are no image, or one that is truncated, too large, too small or of a kind we don't take."""


class TooLargeImageError(UnreadableImageError):
    """More pixels than are decoded at once; such an image is read by tiles."""


class Structure(NamedTuple):
    """What the bytes of an image say of it before anything is decoded.

    Attributes:
        kind: Its format.
        width: As stored, before its orientation is applied, pixels.
        height: As stored, pixels.
        work: Upper bound of the pixels that the decoder visits; a pixel counts once per scan of a JPEG.
        bits: Per sample.
        stated_bits: Per sample, those that count by the file's own word.
        about: How its pixels are stored, for messages.
        turned: Whether metadata that may state an orientation are there.
        clean: The bytes to decode: without what a decoder would unfold and nobody needs; empty if they are all.
        streams: Of a TIFF compressed by JPEG, each strip's or tile's JPEG, and where it ends, column and row.
        scans: Of a JPEG, where the entropy-coded data of each scan begin and end.
        restarts: Whether a JPEG has restart markers.
        sequential: Whether a JPEG brings all of its pixels in one scan.
    """

    kind: Literal["JPEG", "PNG", "TIFF"]
    width: int
    height: int
    work: int
    bits: int = 8
    stated_bits: int = 16
    about: str = ""
    turned: bool = True
    clean: bytes = b""
    streams: tuple[tuple[tuple[int, int], bytes], ...] = ()
    scans: tuple[tuple[int, int], ...] = ()
    restarts: bool = False
    sequential: bool = False


def too_large_text(width: int, height: int) -> str:
    """Return what is said of an image of so many pixels, if they are more than `MAX_PIXELS`."""
    return f"image of {width} x {height} pixels is too large: at most {MAX_PIXELS:,} pixels are decoded"


def check_size(width: int, height: int) -> None:
    """Make sure that an image of this size is decoded.

    Raises:
        TooLargeImageError: more than `MAX_PIXELS` in all.
        UnreadableImageError: fewer than `MIN_SIDE` on a side.
    """
    if width * height > MAX_PIXELS:
        raise TooLargeImageError(too_large_text(width, height))
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError(
            f"image of {width} x {height} pixels is too small: at least {MIN_SIDE} x {MIN_SIDE} are needed"
        )


def check_work(work: int) -> None:
    """Make sure that decoding an image visits no more pixels than honest images need.

    Raises:
        UnreadableImageError: it does.
    """
    if work > _MAX_WORK:
        raise UnreadableImageError(f"image would take too long to decode: {work:,} pixel visits, at most {_MAX_WORK:,}")
