"""Reading of large TIFFs by regions: only the tiles or strips of a region are decoded.

Legend: `[height, width]` and `[height, width, samples]` arrays are uint8, 0 to 255: grey, RGB or RGBA.
"""

from __future__ import annotations

import functools
import logging
import math
import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plurum.errors import ImageError, needs_extra
from plurum.images import MAX_PIXELS
from plurum.images.jpeg_structure import jpeg_scan
from plurum.predictions.arrays import Bools, Bytes
from plurum.slides.microns import microns_from_tiff
from plurum.slides.tissue import is_background

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["AnySlide", "Level", "Slide", "coarsest_level", "thumbnail_from_slide"]


_KINDS = ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR")
_JPEG = 7
_UPRIGHT = 1
# Exceptions of tifffile and its decoders on corrupt files.
_DECODE_ERRORS = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, struct.error)
# Size of the cache of decoded tiles, which neighbouring regions reuse.
_CACHE_BYTES = 96 << 20


@dataclass(frozen=True)
class Level:
    """Resolution level of a slide; level 0 is the largest.

    Attributes:
        width: Width in pixels of this level.
        height: Height in pixels of this level.
        scale: Width of a pixel of this level in pixels of level 0.
    """

    width: int
    height: int
    scale: float


class AnySlide(Protocol):
    """Protocol of a slide, independent of the library that reads it."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels from the largest to the smallest."""

    @property
    def microns_per_pixel(self) -> float | None:
        """Resolution of level 0 in µm per pixel; None if unknown."""

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:
        """Return the pixels of a rectangle, given in pixels of its level."""

    def sample(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:
        """Yield every `step`-th pixel of a level in pieces, each with its row and column in the result."""


class Slide:
    """An open TIFF: `with Slide(path) as slide: slide.region(x, y, width, height)`.

    Args:
        path: Path of the file.

    Raises:
        ImageError: the file is not a TIFF, or can't be read by regions.
        MissingExtraError: tifffile is not installed.
    """

    def __init__(self, path: Path) -> None:
        with needs_extra("slides"):
            from tifffile import TiffFile, TiffFileError
        _silence_tifffile()
        self.path = path
        self._cache: OrderedDict[tuple[int, int], Bytes] = OrderedDict()
        self._cache_bytes = 0
        stack = ExitStack()
        try:
            self._file = stack.enter_context(TiffFile(path))
            first = self._file.pages.first
        except (TiffFileError, *_DECODE_ERRORS) as error:
            stack.close()
            raise ImageError(
                f"image has more than the {MAX_PIXELS:,} pixels that are decoded at once, and is not a TIFF that can "
                f"be read by tiles: {error}"
            ) from error
        with stack:
            if first.is_reduced or first.is_mask:
                raise ImageError("its first page is a reduced copy or a mask: save the image itself as the first")
            self._page = _check_page(first)
            stack.pop_all()
        self.width, self.height = int(self._page.imagewidth), int(self._page.imagelength)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.clear()
        self._file.close()

    @property
    def is_deep(self) -> bool:
        """True for grey of 16 bits, of which regions hold the high byte, so that no window applies to them."""
        return self._page.bitspersample == 16 and self._page.samplesperpixel == 1

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels from the largest to the smallest, read at first access.

        Raises:
            ImageError: a level is missing, or can't be read by regions.
        """
        return tuple(
            Level(int(page.imagewidth), int(page.imagelength), self.width / page.imagewidth) for page in self._pages
        )

    @functools.cached_property
    def microns_per_pixel(self) -> float | None:
        """Resolution of level 0 in µm per pixel, see `microns_from_tiff`; None if unknown."""
        return microns_from_tiff(self._file)

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:
        """Return the pixels of a rectangle inside the image, given in pixels of `level`.

        Raises:
            ImageError: the data are corrupt or truncated; the message names level and tile.
        """
        rows, columns, across = _segment_grid(self._page_of(level))
        tops = range(y // rows, -(-(y + height) // rows))
        lefts = range(x // columns, -(-(x + width) // columns))
        whole = np.concatenate(
            [
                np.concatenate([self._cached_segment(level, top * across + left) for left in lefts], axis=1)
                for top in tops
            ]
        )
        y0, x0 = y % rows, x % columns
        return np.ascontiguousarray(whole[y0 : y0 + height, x0 : x0 + width])

    def sample(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:
        """Yield every `step`-th pixel of a level in pieces, each with its row and column in the result.

        Raises:
            ImageError: the data are corrupt or truncated; the message names level and tile.
        """
        page = self._page_of(level)
        rows, columns, across = _segment_grid(page)
        for index in range(math.prod(page.chunked[:2])):
            top, left = index // across * rows, index % across * columns
            piece = self._segment(level, index)[-top % step :: step, -left % step :: step]
            yield -(-top // step), -(-left // step), piece

    def tissue(self, samples: int, size: int) -> tuple[Bools, float]:
        """Return a coarse grid that is True where there is tissue, and the width of its cells in pixels of the image.

        Samples the smallest level with enough pixels, segment by segment, so that the image is never in memory as a
        whole.

        Args:
            samples: Least number of cells across a square of `size` pixels.
            size: Side of the square in pixels of the image.

        Raises:
            ImageError: the data are corrupt or truncated.
        """
        number = coarsest_level(self.levels, size / samples)
        level = self.levels[number]
        step = max(1, int(size / level.scale / samples))
        found = np.zeros((-(-level.height // step), -(-level.width // step)), dtype=np.bool_)
        for y, x, piece in self.sample(number, step):
            found[y : y + piece.shape[0], x : x + piece.shape[1]] = ~is_background(piece)
        return found, level.scale * step

    @functools.cached_property
    def _pages(self) -> list[TiffPage]:
        """Pages of the levels."""
        try:
            first = self._file.series[0]
            if len(first.pages) > 1:
                raise ImageError(f"image has {len(first.pages):,} pages of equal rank: save the wanted one alone")
            pages = [level.keyframe for level in first.levels]
            missing = self._missing_level([page.offset for page in pages])
        except _DECODE_ERRORS as error:
            raise ImageError(f"image is corrupt or truncated: a level of its pyramid can't be read: {error}") from error
        if missing:
            raise ImageError(f"image is corrupt or truncated: {missing}")
        levels = [self._page]
        for number, page in enumerate(pages[1:], 1):
            if page.dtype == self._page.dtype and page.imagewidth < levels[-1].imagewidth:
                levels.append(_check_page(page, f"level {number} of the "))
        return levels

    def _missing_level(self, found: list[int]) -> str:
        """Return which level's directory is referenced but missing, which tifffile only logs; empty if none."""
        tiff, handle, offset = self._file.tiff, self._file.filehandle, self._file.pages.first.offset
        seen: set[int] = set()
        while offset and offset not in seen:
            if offset + tiff.tagnosize > handle.size:
                return f"level {len(found)} is missing: it should start at byte {offset:,} of {handle.size:,}"
            seen.add(offset)
            handle.seek(offset)
            (tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
            handle.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
            (offset,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        for number, place in enumerate(self._file.pages.first.subifds or (), 1):
            if place not in found:
                return f"level {number} is missing: it does not start at byte {place:,} of {handle.size:,}"
        return ""

    def _page_of(self, level: int) -> TiffPage:
        # Level 0 alone needs no other pages.
        return self._pages[level] if level else self._page

    def _cached_segment(self, level: int, index: int) -> Bytes:
        """Return a segment from the cache, or decode it."""
        if (level, index) in self._cache:
            self._cache.move_to_end((level, index))
            return self._cache[level, index]
        segment = self._cache[level, index] = self._segment(level, index)
        self._cache_bytes += segment.nbytes
        while self._cache_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _segment(self, level: int, index: int) -> Bytes:
        """Return the pixels of a tile or strip, cropped at the image's edges."""
        page = self._page_of(level)
        rows, columns, across = _segment_grid(page)
        row, column = divmod(index, across)
        height, width = min(rows, page.imagelength - row * rows), min(columns, page.imagewidth - column * columns)
        try:
            data = _segment_data(page, index)
            if data is None:
                return np.zeros((height, width, page.samplesperpixel)[: page.ndim], dtype=np.uint8)
            options = {"jpegtables": page.jpegtables} if page.jpegtables else {}
            decoded = page.decode(data, index, **options)[0]
            if decoded is None or decoded.shape[1] < height or decoded.shape[2] < width:
                raise ValueError("it is too short")
        except _DECODE_ERRORS as error:
            place = f"tile (column {column}, row {row}) of level {level}, at pixel ({column * columns}, {row * rows})"
            raise ImageError(f"image is corrupt or truncated: {place}: {error}") from error
        pixels = np.asarray(decoded[0, :height, :width])
        if pixels.dtype == np.uint16:
            # As in `plurum.images`: the high byte.
            pixels = pixels >> 8
        if _kind(page) == "MINISWHITE":
            pixels = 255 - pixels
        return (pixels[..., 0] if page.ndim == 2 else pixels).astype(np.uint8)


def coarsest_level(levels: tuple[Level, ...], most: float) -> int:
    """Return the coarsest level with a scale of at most `most`; level 0 if there is none.

    Allows a small tolerance, as scales are inexact where a level's size was rounded.
    """
    return max((number for number, level in enumerate(levels) if level.scale <= most * 1.005), default=0)


def thumbnail_from_slide(slide: AnySlide, side: int) -> tuple[Bytes, float]:
    """Return a thumbnail of the whole slide, and the width of its pixels in pixels of level 0.

    Samples pixels piece by piece, so that the slide is never in memory as a whole.

    Args:
        slide: Slide of any kind.
        side: Largest length of the longer side; it is at least half of that if the slide has enough pixels.

    Raises:
        ImageError: the data are corrupt or truncated.
    """
    longer = max(slide.levels[0].width, slide.levels[0].height)
    number = coarsest_level(slide.levels, longer / side)
    level = slide.levels[number]
    step = -(-max(level.width, level.height) // side)
    whole: Bytes | None = None
    for y, x, piece in slide.sample(number, step):
        if whole is None:
            whole = np.zeros((-(-level.height // step), -(-level.width // step), *piece.shape[2:]), dtype=np.uint8)
        whole[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
    if whole is None:
        raise ImageError("image has no pixels")
    return whole, level.scale * step


@functools.cache
def _silence_tifffile() -> None:
    """Stop tifffile from logging corrupt files, for which this module raises exceptions."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def _segment_grid(page: TiffPage) -> tuple[int, int, int]:
    """Return the height and width of segments, and the number of segments per row."""
    return int(page.chunks[0]), int(page.chunks[1]), int(page.chunked[1])


def _segment_data(page: TiffPage, index: int) -> bytes | None:
    """Return the encoded segment; None if it was never written, which libtiff also reads as zeros."""
    count = page.databytecounts[index]
    if count == 0:
        return None
    handle = page.parent.filehandle
    handle.seek(page.dataoffsets[index])
    data = bytes(handle.read(count))
    if len(data) < count:
        raise ValueError(f"{len(data):,} of its {count:,} bytes are there")
    if page.compression == _JPEG:
        _check_jpeg(page, data)
    return data


def _check_jpeg(page: TiffPage, data: bytes) -> None:
    """Check that a tile's JPEG is complete and not larger than the tile, as decoders fill in missing data."""
    tables = page.jpegtables or b""
    scan = jpeg_scan(tables[:-2] + data[2:] if tables else data)
    if scan.width > page.chunks[1] or scan.height > page.chunks[0]:
        raise ValueError(f"it holds a JPEG of {scan.width} x {scan.height} pixels")


def _check_page(page: TiffPage, which: str = "") -> TiffPage:
    """Return `page` if reading it by regions gives the same pixels as `plurum.images`; otherwise raise."""
    kind = _kind(page)
    tag = page.tags.get("Orientation")
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in {8, 16}:
        raise ImageError(f"{which}image has pixels of type {page.dtype}: expected 8- or 16-bit grey or colour")
    most = page.tags.valueof("MaxSampleValue", 0)
    if page.bitspersample == 16 and isinstance(most, int) and 255 < most < 65_535 and most & (most + 1) == 0:
        raise ImageError(f"{which}image has values that end at {most:,}, not at 65,535: scale them")
    if kind not in _KINDS or (kind == "YCBCR" and page.compression != _JPEG):
        raise ImageError(f"{which}image of kind {kind} can't be read by tiles: save it as grey or RGB")
    if page.ndim != (2 if page.samplesperpixel == 1 else 3) or page.planarconfig != 1 or page.samplesperpixel == 2:
        raise ImageError(
            f"{which}image of shape {list(page.shape)} can't be read by tiles: save it with interleaved colours"
        )
    if tag is not None and tag.value != _UPRIGHT:
        raise ImageError(f"{which}image is turned by its Orientation tag and can't be read by tiles: save it upright")
    if math.prod(page.chunks[:2]) > MAX_PIXELS:
        raise ImageError(
            f"{which}image has strips of {page.chunks[1]} x {page.chunks[0]} pixels, more than the {MAX_PIXELS:,} that "
            f"are decoded at once: save it as a tiled TIFF"
        )
    return page


def _kind(page: TiffPage) -> str:
    """Return TIFF's name of the photometric interpretation, or its number if it has no name."""
    return str(getattr(page.photometric, "name", page.photometric))
