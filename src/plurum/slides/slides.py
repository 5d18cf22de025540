"""Large TIFFs, read by regions: only the tiles or strips that a region touches are decoded.

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
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from plurum.errors import ImageError, needs_extra
from plurum.image_structure.jpeg_structure import jpeg_scan
from plurum.images import MAX_PIXELS
from plurum.slides.microns import microns_from_tiff
from plurum.slides.tissue import is_background

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["AnySlide", "Level", "Slide", "coarsest_level", "thumbnail_from_slide"]

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_KINDS = ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR")
_JPEG = 7
_UPRIGHT = 1
# What tifffile and its decoders raise on broken files.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, struct.error)
# Of decoded tiles that the next regions may need, too.
_KEPT_BYTES = 96 << 20


@dataclass(frozen=True)
class Level:
    """One size in which a slide holds its image; level 0 is the largest.

    Attributes:
        width: In its own pixels.
        height: Likewise.
        scale: How many of level 0's pixels one of its own is wide.
    """

    width: int
    height: int
    scale: float


class AnySlide(Protocol):
    """What is needed of a slide, whoever reads it."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """From the largest to the smallest."""

    @property
    def microns_per_pixel(self) -> float | None:
        """Of level 0; None where the file does not say."""

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:
        """The pixels of a rectangle, in pixels of its level."""

    def sampled(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:
        """Pieces of every `step`-th pixel of a level, each with the row and the column where it belongs."""


class Slide:
    """An open TIFF: `with Slide(path) as slide: slide.region(x, y, width, height)`.

    Raises:
        ImageError: it is no TIFF, or one of a kind that can't be read by regions.
        MissingExtraError: tifffile is not installed.
    """

    def __init__(self, path: Path) -> None:
        with needs_extra("slides"):
            from tifffile import TiffFile, TiffFileError
        _silence_tifffile()
        self.path = path
        self._kept: OrderedDict[tuple[int, int], Bytes] = OrderedDict()
        self._kept_bytes = 0
        stack = ExitStack()
        try:
            self._file = stack.enter_context(TiffFile(path))
            first = self._file.pages.first
        except (TiffFileError, *_BROKEN) as error:
            stack.close()
            raise ImageError(
                f"image has more than the {MAX_PIXELS:,} pixels that are decoded at once, and is no TIFF that can be "
                f"read by tiles: {error}"
            ) from error
        with stack:
            if first.is_reduced or first.is_mask:
                raise ImageError("its first page is a reduced copy or a mask: save the image itself as the first")
            self._page = _checked(first)
            stack.pop_all()
        self.width, self.height = int(self._page.imagewidth), int(self._page.imagelength)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.clear()
        self._file.close()

    @property
    def levels(self) -> tuple[Level, ...]:
        """From the largest to the smallest; looked up when first asked for.

        Raises:
            ImageError: a level is missing, or of a kind that can't be read by regions.
        """
        return tuple(
            Level(int(page.imagewidth), int(page.imagelength), self.width / page.imagewidth) for page in self._pages
        )

    @functools.cached_property
    def microns_per_pixel(self) -> float | None:
        """Of level 0, by OME-XML, Aperio's description or the resolution tags; None where none of them says."""
        return microns_from_tiff(self._file)

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:
        """Return the pixels of a rectangle inside the image; all numbers are in pixels of `level`.

        Raises:
            ImageError: its data are corrupt or truncated; level and tile are named.
        """
        rows, columns, across = _grid(self._page_of(level))
        tops = range(y // rows, -(-(y + height) // rows))
        lefts = range(x // columns, -(-(x + width) // columns))
        whole = np.concatenate(
            [np.concatenate([self._kept_segment(level, top * across + left) for left in lefts], axis=1) for top in tops]
        )
        y0, x0 = y % rows, x % columns
        return np.ascontiguousarray(whole[y0 : y0 + height, x0 : x0 + width])

    def sampled(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:
        """Yield every `step`-th pixel of a level, piece by piece, each with the row and column where it belongs.

        Raises:
            ImageError: its data are corrupt or truncated; level and tile are named.
        """
        page = self._page_of(level)
        rows, columns, across = _grid(page)
        for index in range(math.prod(page.chunked[:2])):
            top, left = index // across * rows, index % across * columns
            piece = self._segment(level, index)[-top % step :: step, -left % step :: step]
            yield -(-top // step), -(-left // step), piece

    def tissue(self, samples: int, size: int) -> tuple[Bools, float]:
        """Return where there is tissue, on a coarse grid, and how many of the image's pixels a cell of it is wide.

        It is sampled on the lowest level of the image's pyramid that has enough pixels, if it has one, segment by
        segment: the image never lies in memory whole.

        Args:
            samples: How many cells at least a square of `size` pixels shall be wide.
            size: In pixels of the image.

        Raises:
            ImageError: its data are corrupt or truncated.
        """
        number = coarsest_level(self.levels, size / samples)
        level = self.levels[number]
        step = max(1, int(size / level.scale / samples))
        found = np.zeros((-(-level.height // step), -(-level.width // step)), dtype=np.bool_)
        for y, x, piece in self.sampled(number, step):
            found[y : y + piece.shape[0], x : x + piece.shape[1]] = ~is_background(piece)
        return found, level.scale * step

    @functools.cached_property
    def _pages(self) -> list[TiffPage]:
        """The pages of the levels."""
        try:
            first = self._file.series[0]
            if len(first.pages) > 1:
                raise ImageError(
                    f"image has {len(first.pages):,} pages of equal rank: save the one that is meant alone"
                )
            pages = [level.keyframe for level in first.levels]
            missing = self._missing([page.offset for page in pages])
        except _BROKEN as error:
            raise ImageError(f"image is corrupt or truncated: a level of its pyramid can't be read: {error}") from error
        if missing:
            raise ImageError(f"image is corrupt or truncated: {missing}")
        levels = [self._page]
        for number, page in enumerate(pages[1:], 1):
            if page.dtype == self._page.dtype and page.imagewidth < levels[-1].imagewidth:
                levels.append(_checked(page, f"level {number} of the "))
        return levels

    def _missing(self, found: list[int]) -> str:
        """Return which level's directory can't be found that the file promises; tifffile only logs that."""
        tiff, handle, offset = self._file.tiff, self._file.filehandle, self._file.pages.first.offset
        seen: set[int] = set()
        while offset and offset not in seen:
            if offset + tiff.tagnosize > handle.size:
                return f"level {len(found)} is missing: it should begin at byte {offset:,} of {handle.size:,}"
            seen.add(offset)
            handle.seek(offset)
            (tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
            handle.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
            (offset,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        for number, place in enumerate(self._file.pages.first.subifds or (), 1):
            if place not in found:
                return f"level {number} is missing: at byte {place:,} of {handle.size:,} it does not begin"
        return ""

    def _page_of(self, level: int) -> TiffPage:
        # Regions of level 0 alone need no look at the others.
        return self._pages[level] if level else self._page

    def _kept_segment(self, level: int, index: int) -> Bytes:
        """Return a segment, which neighbouring regions need again."""
        if (level, index) in self._kept:
            self._kept.move_to_end((level, index))
            return self._kept[level, index]
        segment = self._kept[level, index] = self._segment(level, index)
        self._kept_bytes += segment.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return segment

    def _segment(self, level: int, index: int) -> Bytes:
        """Return the pixels of a tile or strip, cut at the image's edges."""
        page = self._page_of(level)
        rows, columns, across = _grid(page)
        row, column = divmod(index, across)
        height, width = min(rows, page.imagelength - row * rows), min(columns, page.imagewidth - column * columns)
        try:
            data = _data(page, index)
            if data is None:
                return np.zeros((height, width, page.samplesperpixel)[: page.ndim], dtype=np.uint8)
            options = {"jpegtables": page.jpegtables} if page.jpegtables else {}
            decoded = page.decode(data, index, **options)[0]
            if decoded is None or decoded.shape[1] < height or decoded.shape[2] < width:
                raise ValueError("it is too short")
        except _BROKEN as error:
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
    """Return the coarsest level on which a pixel is at most `most` of level 0's pixels wide; level 0 if there is none.

    Scales are a little off where a level's size was rounded; that counts as equal.
    """
    return max((number for number, level in enumerate(levels) if level.scale <= most * 1.005), default=0)


def thumbnail_from_slide(slide: AnySlide, side: int) -> tuple[Bytes, float]:
    """Return the whole slide made small, and how many of level 0's pixels one of these is wide.

    Every so-many-th pixel is taken, piece by piece: the slide never lies in memory whole.

    Args:
        slide: Any.
        side: How long the longer side is at most; it is at least half of that where the slide has so many pixels.

    Raises:
        ImageError: its data are corrupt or truncated.
    """
    longer = max(slide.levels[0].width, slide.levels[0].height)
    number = coarsest_level(slide.levels, longer / side)
    level = slide.levels[number]
    step = -(-max(level.width, level.height) // side)
    whole: Bytes | None = None
    for y, x, piece in slide.sampled(number, step):
        if whole is None:
            whole = np.zeros((-(-level.height // step), -(-level.width // step), *piece.shape[2:]), dtype=np.uint8)
        whole[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
    if whole is None:
        raise ImageError("image has no pixels")
    return whole, level.scale * step


@functools.cache
def _silence_tifffile() -> None:
    """Keep tifffile's complaints about broken files to itself; what matters of them is raised here."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def _grid(page: TiffPage) -> tuple[int, int, int]:
    """Return a segment's height and width, and how many of them lie side by side."""
    return int(page.chunks[0]), int(page.chunks[1]), int(page.chunked[1])


def _data(page: TiffPage, index: int) -> bytes | None:
    """Return a segment as it is in the file; None for one that was never written, which libtiff reads as zeros too.

    Raises:
        ValueError: the file ends before it does.
    """
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
    """Make sure that a tile's JPEG is whole, and no larger than the tile: decoders make up what is missing, in grey.

    Raises:
        ValueError: it is not.
    """
    tables = page.jpegtables or b""
    scan = jpeg_scan(tables[:-2] + data[2:] if tables else data)
    if scan.width > page.chunks[1] or scan.height > page.chunks[0]:
        raise ValueError(f"it holds a JPEG of {scan.width} x {scan.height} pixels")


def _checked(page: TiffPage, which: str = "") -> TiffPage:
    """Return `page` if it can be read by regions as `plurum.images` would read the whole."""
    kind = _kind(page)
    tag = page.tags.get("Orientation")
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in {8, 16}:
        raise ImageError(f"{which}image has pixels of type {page.dtype}: 8- or 16-bit grey or colour is needed")
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
    """Return how the samples are to be understood, by TIFF's name for it; of a kind without a name, its number."""
    return str(getattr(page.photometric, "name", page.photometric))
