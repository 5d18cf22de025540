"""Cut large images into tiles, and keep the tiles with the most tissue."""

from __future__ import annotations

import functools
import io
import struct
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from plurum.dicom_files import heading_from_file
from plurum.errors import ImageError, SettingsError
from plurum.images import (
    FORMAT_NAMES,
    FORMATS,
    MAX_PIXELS,
    MIN_SIDE,
    TooLargeImageError,
    UnreadableImageError,
    grey_values,
    open_image,
    to_eight_bit,
    too_large_text,
)
from plurum.images.dicom_file import is_dicom
from plurum.images.dicom_writer import with_only_pixels
from plurum.images.windows import apply_window, window_from_range
from plurum.regular_files import MAX_IMAGE_BYTES, check_regular, read_regular
from plurum.slides.slides import Slide
from plurum.slides.tissue import LEAST_TISSUE, is_background, tile_starts, tissue_share

__all__ = ["ImageRegion", "Tiling", "frames_from_file", "regions_from_file"]

# The tissue of a tile is measured at 32 × 32 points at least.
_SAMPLES = 32
# Smaller files are read without checking the image size in their header first.
_SMALL_BYTES = 1 << 25
_DECODING = threading.Lock()


@dataclass(frozen=True)
class Tiling:
    """Tile size and number for larger images.

    Attributes:
        size: Side of a tile, in pixels of the file.
        most: Largest number of tiles that are kept per image.
        keeps_bits: True if tiles of grey images of 16 bits keep them, for a window. Fingerprints of data are made from
            the text of this class, which stays as it was.
    """

    size: int
    most: int
    keeps_bits: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.size >= MIN_SIDE and self.size**2 <= MAX_PIXELS):
            highest = int(MAX_PIXELS**0.5)
            raise SettingsError(f"--tile-size: expected {MIN_SIDE} to {highest:,} pixels, got {self.size}")
        if self.most < 1:
            raise SettingsError(f"--max-tiles: expected at least 1, got {self.most}")


@dataclass(frozen=True)
class ImageRegion:
    """An image file, or a rectangle of one.

    Attributes:
        path: Path of the file.
        box: x, y, width and height of the rectangle in pixels, from the top left; None for the whole image.
        fault: Reason why the image is unreadable, if known already.
        frame: Frame of a DICOM file of several, from 0; None for other files.
        keeps_bits: True if a rectangle of a grey image of 16 bits keeps them.
    """

    path: Path
    box: tuple[int, int, int, int] | None = None
    fault: str = ""
    frame: int | None = None
    keeps_bits: bool = False

    @property
    def source(self) -> str:
        """Path of the file, with a fragment for a rectangle, `#xywh=0,512,512,512` (W3C), or a frame, `#frame=0`."""
        if self.frame is not None:
            return f"{self.path}#frame={self.frame}"
        return f"{self.path}#xywh={','.join(map(str, self.box))}" if self.box else str(self.path)

    def read_encoded(self) -> bytes:
        """Return the file's bytes, the rectangle as a PNG, or of a DICOM file only what the pixels depend on.

        Raises:
            ImageError: the image is known to be unreadable.
            UnreadableImageError: decoding fails; TooLargeImageError if --tile-size would help.
            OSError: the file can't be opened.
        """
        if self.fault:
            raise ImageError(self.fault)
        if self.box is None:
            if (
                check_regular(self.path).st_size > _SMALL_BYTES
                and not heading_from_file(self.path)
                and _is_large(size := _header(self.path))
            ):
                raise TooLargeImageError(too_large_text(*size))
            data = read_regular(self.path, MAX_IMAGE_BYTES)
            return with_only_pixels(data, self.frame or 0) if is_dicom(data) else data
        buffer = io.BytesIO()
        Image.fromarray(_region(self)).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def regions_from_file(path: Path, tiling: Tiling) -> list[ImageRegion]:
    """Return the tiles of an image, from the top left, or the whole image if it is not larger than a tile.

    Tissue is the part that `is_background` does not match, at points of a coarse grid. Tiles with less than
    `LEAST_TISSUE` are dropped; of the others, those with the most tissue are kept. An unreadable image is returned
    whole, with its fault.
    """
    if heading_from_file(path):
        return [ImageRegion(path, fault="DICOM images are not cut into tiles. Leave out --tile-size")]
    try:
        if max(_header(path)) <= tiling.size:
            return [ImageRegion(path)]
        tissue, cell, width, height = _tissue(path, tiling)
    except (ImageError, UnreadableImageError) as error:
        return [ImageRegion(path, fault=str(error))]
    except OSError as error:
        return [ImageRegion(path, fault=f"can't be read: {error.strerror or error}")]
    boxes = [
        (x, y, min(tiling.size, width), min(tiling.size, height))
        for y in tile_starts(height, tiling.size)
        for x in tile_starts(width, tiling.size)
    ]
    shares = [tissue_share(tissue, cell, box) for box in boxes]
    best = sorted(range(len(boxes)), key=lambda index: -shares[index])[: tiling.most]
    kept = [index for index in sorted(best) if shares[index] >= LEAST_TISSUE]
    if not kept:
        return [ImageRegion(path, fault=f"no tile of {tiling.size} pixels has at least {LEAST_TISSUE:.0%} tissue")]
    return [ImageRegion(path, boxes[index], keeps_bits=tiling.keeps_bits) for index in kept]


def frames_from_file(path: Path) -> list[ImageRegion]:
    """Return the frames of a DICOM file of several, or the whole image of any other file."""
    heading = heading_from_file(path)
    if heading is None or heading.frames == 1:
        return [ImageRegion(path)]
    return [ImageRegion(path, frame=frame) for frame in range(heading.frames)]


def _tissue(path: Path, tiling: Tiling) -> tuple[npt.NDArray[np.bool_], float, int, int]:
    """Return a mask of tissue on a coarse grid, the width of its cells, and the image's width and height.

    Pixels with more than 8 bits are scaled to the image's own range first.
    """
    if _is_large(_header(path)):
        with Slide(path) as slide:
            if tiling.keeps_bits and slide.is_deep:
                raise ImageError(
                    f"grey of 16 bits and more than {MAX_PIXELS:,} pixels has no window: save it with 8 bits"
                )
            return *slide.tissue(_SAMPLES, tiling.size), slide.width, slide.height
    step = max(1, tiling.size // _SAMPLES)
    pixels = _decode_whole(path, keeps_bits=tiling.keeps_bits)
    points = pixels[::step, ::step]
    if points.dtype != np.uint8:
        points = apply_window(np.ascontiguousarray(points), window_from_range(float(pixels.min()), float(pixels.max())))
    return ~is_background(points), step, pixels.shape[1], pixels.shape[0]


def _region(region: ImageRegion) -> npt.NDArray[Any]:
    x, y, width, height = region.box or (0, 0, 0, 0)
    if _is_large(_header(region.path)):
        with Slide(region.path) as slide:
            return slide.region(x, y, width, height)
    pixels = _decode_whole(region.path, keeps_bits=region.keeps_bits)
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def _decode_whole(path: Path, *, keeps_bits: bool) -> npt.NDArray[Any]:
    """Return all pixels of an image that is small enough to be decoded at once, before resizing."""
    status = path.stat()
    # Several threads read the tiles of an image one after the other; the first decodes it for all.
    with _DECODING:
        return _decode(path, status.st_size, status.st_mtime_ns, keeps_bits=keeps_bits)


@functools.lru_cache(maxsize=1)
def _decode(path: Path, _size_bytes: int, _changed_ns: int, *, keeps_bits: bool) -> npt.NDArray[Any]:
    data = read_regular(path, MAX_IMAGE_BYTES)
    values = grey_values(data) if keeps_bits else None
    if values is None:
        return np.asarray(to_eight_bit(open_image(data)))
    if values.dtype != np.uint16:
        raise UnreadableImageError(
            "grey of 8 or 16 unsigned bits is cut into tiles, not signed or floating-point numbers, nor 32 bits"
        )
    return values


def _header(path: Path) -> tuple[int, int]:
    """Return width and height from the file's header, also of large TIFFs, which Pillow refuses."""
    try:
        check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[name for name in FORMATS if name != "DICOM"]) as image:
                return image.size
    except Image.DecompressionBombError:
        with Slide(path) as slide:
            return slide.width, slide.height
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not a {FORMAT_NAMES} image") from error
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UnreadableImageError(f"image is corrupt or truncated: {error}") from error


def _is_large(size: tuple[int, int]) -> bool:
    return size[0] * size[1] > MAX_PIXELS
