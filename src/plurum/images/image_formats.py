"""The image formats that Plurum reads: the one place to add a format.

Training, the client, the page, the gateway and the preprocess model inside Triton all use this table.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

from PIL.Image import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .avif_structure import avif_structure
from .dicom_file import PREAMBLE_BYTES
from .dicom_pixels import image_from_dicom
from .dicom_structure import dicom_structure
from .image_limits import Structure, UnreadableImageError
from .jpeg2000_structure import jpeg2000_structure
from .jpeg_structure import jpeg_structure
from .png_structure import png_structure
from .tiff_structure import tiff_structure
from .webp_structure import webp_structure
from .windows import WindowRule

__all__ = ["FORMATS", "FORMAT_NAMES", "IMAGE_SUFFIXES", "ImageFormat", "format_of"]


class ImageFormat(NamedTuple):
    """A format of image files.

    Attributes:
        suffixes: Suffixes of file names, the usual one first.
        media_type: Media type (MIME).
        starts: Possible bytes at `offset`; no other format has them.
        structure: Function that reads the structure of a file without decoding it.
        decoder: Function that returns the image of a file; a window applies to grey DICOM images.
        offset: Offset of `starts`.
    """

    suffixes: tuple[str, ...]
    media_type: str
    starts: tuple[bytes, ...]
    structure: Callable[[bytes], Structure]
    decoder: Callable[[bytes, WindowRule | None], Image]
    offset: int = 0


def _jpeg(data: bytes, _: WindowRule | None) -> Image:
    return JpegImageFile(io.BytesIO(data))


def _png(data: bytes, _: WindowRule | None) -> Image:
    return PngImageFile(io.BytesIO(data))


def _tiff(data: bytes, _: WindowRule | None) -> Image:
    return TiffImageFile(io.BytesIO(data))


def _webp(data: bytes, _: WindowRule | None) -> Image:
    return _of_one_size(WebPImageFile(io.BytesIO(data)), webp_structure(data))


def _avif(data: bytes, _: WindowRule | None) -> Image:
    try:
        from PIL.AvifImagePlugin import AvifImageFile
    except ImportError as error:
        raise UnreadableImageError("an AVIF that can't be decoded here: expected Pillow 11.3 or newer") from error
    image = AvifImageFile(io.BytesIO(data))
    if image.n_frames > 1:
        raise UnreadableImageError("an AVIF with several pictures (animation): save the wanted one alone")
    return _of_one_size(image, avif_structure(data))


def _jpeg2000(data: bytes, _: WindowRule | None) -> Image:
    return _of_one_size(Jpeg2KImageFile(io.BytesIO(data)), jpeg2000_structure(data))


def _of_one_size(image: Image, structure: Structure) -> Image:
    """Return the opened image, whose size must be the one that was checked; Pillow allocates memory for its own."""
    if image.size != (structure.width, structure.height):
        raise UnreadableImageError(f"image is corrupt: its {structure.kind} headers state two sizes")
    return image


# By name, as `Structure.kind` and Pillow state it.
FORMATS = {
    "JPEG": ImageFormat((".jpg", ".jpeg"), "image/jpeg", (b"\xff\xd8",), jpeg_structure, _jpeg),
    "PNG": ImageFormat((".png",), "image/png", (b"\x89PNG\r\n\x1a\n",), png_structure, _png),
    "TIFF": ImageFormat(
        (".tif", ".tiff"), "image/tiff", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff_structure, _tiff
    ),
    "WEBP": ImageFormat((".webp",), "image/webp", (b"WEBPVP8",), webp_structure, _webp, offset=8),
    "AVIF": ImageFormat((".avif",), "image/avif", (b"ftypavif", b"ftypavis"), avif_structure, _avif, offset=4),
    "JPEG2000": ImageFormat(
        (".jp2", ".j2k", ".jpx"),
        "image/jp2",
        (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
        jpeg2000_structure,
        _jpeg2000,
    ),
    "DICOM": ImageFormat(
        (".dcm", ".dicom"), "application/dicom", (b"DICM",), dicom_structure, image_from_dicom, offset=PREAMBLE_BYTES
    ),
}
# The preamble of a DICOM file may look like another format, so its own mark counts first.
_BY_OFFSET = sorted(FORMATS.values(), key=lambda one: -one.offset)
# For messages: "JPEG, PNG, … or DICOM".
FORMAT_NAMES = " or ".join((", ".join([*FORMATS][:-1]), [*FORMATS][-1]))
IMAGE_SUFFIXES = tuple(sorted(suffix for one in FORMATS.values() for suffix in one.suffixes))


def format_of(data: bytes) -> ImageFormat | None:
    """Return the format of an encoded image by its first 132 bytes; None if it is none of `FORMATS`."""
    return next((one for one in _BY_OFFSET if data.startswith(one.starts, one.offset)), None)
