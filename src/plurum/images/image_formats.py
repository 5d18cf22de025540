"""The image formats that Plurum reads: the one place to add a format.

Training, the client, the page, the gateway and the preprocess model inside Triton all use this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, NamedTuple

from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .image_limits import Structure
from .jpeg_structure import jpeg_structure
from .png_structure import png_structure
from .tiff_structure import tiff_structure

__all__ = ["FORMATS", "FORMAT_NAMES", "IMAGE_SUFFIXES", "ImageFormat", "format_of"]


class ImageFormat(NamedTuple):
    """A format of image files.

    Attributes:
        suffixes: Suffixes of file names, the usual one first.
        media_type: Media type (MIME).
        starts: Possible first bytes of a file; no other format starts with them.
        structure: Function that reads the structure of a file without decoding it.
        decoder: Pillow's decoder.
    """

    suffixes: tuple[str, ...]
    media_type: str
    starts: tuple[bytes, ...]
    structure: Callable[[bytes], Structure]
    decoder: Callable[[IO[bytes]], Image]


# By name, as `Structure.kind` and Pillow state it.
FORMATS = {
    "JPEG": ImageFormat((".jpg", ".jpeg"), "image/jpeg", (b"\xff\xd8",), jpeg_structure, JpegImageFile),
    "PNG": ImageFormat((".png",), "image/png", (b"\x89PNG\r\n\x1a\n",), png_structure, PngImageFile),
    "TIFF": ImageFormat(
        (".tif", ".tiff"), "image/tiff", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff_structure, TiffImageFile
    ),
}
# For messages: "JPEG, PNG or TIFF".
FORMAT_NAMES = " or ".join((", ".join([*FORMATS][:-1]), [*FORMATS][-1]))
IMAGE_SUFFIXES = tuple(sorted(suffix for one in FORMATS.values() for suffix in one.suffixes))


def format_of(data: bytes) -> ImageFormat | None:
    """Return the format of an encoded image by its first bytes; None if it is none of `FORMATS`."""
    return next((one for one in FORMATS.values() if data.startswith(one.starts)), None)
