"""Large TIFFs, read by regions: only the tiles or strips that a region touches are decoded.

Legend: `[height, width]` and `[height, width, samples]` arrays are uint8, 0 to 255: grey, RGB or RGBA.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plurum.errors import ImageError, needs_extra
from plurum.images import MAX_PIXELS

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["Slide", "is_background"]

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Glass is a little below white, what the scanner left out is black; tissue is stained.
_NEARLY_WHITE, _NEARLY_EMPTY = 220, 10
_KINDS = ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR")
_JPEG = 7
_UPRIGHT = 1
# What tifffile and its decoders raise on broken files.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, struct.error)


def is_background(pixels: Bytes) -> Bools:
    """Return which pixels show no tissue: all channels at least 220 (glass) or at most 10 (never scanned).

    Args:
        pixels: `[height, width]` or `[height, width, samples]`; a fourth sample, opacity, plays no part.
    """
    colours = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    return np.asarray(
        np.all(colours >= _NEARLY_WHITE, axis=-1) | np.all(colours <= _NEARLY_EMPTY, axis=-1), dtype=np.bool_
    )


class Slide:
    """An open TIFF: `with Slide(path) as slide: slide.region(x, y, width, height)`.

    Raises:
        ImageError: it is no TIFF, or one of a kind that can't be read by regions.
        MissingExtraError: tifffile is not installed.
    """

    def __init__(self, path: Path) -> None:
        with needs_extra("training"):
            from tifffile import TiffFile, TiffFileError
        self.path = path
        try:
            self._file = TiffFile(path)
        except (TiffFileError, *_BROKEN) as error:
            raise ImageError(
                f"image has more than the {MAX_PIXELS:,} pixels that are decoded at once, and is no TIFF that can be "
                f"read by tiles: {error}"
            ) from error
        try:
            self._page = self._checked(self._file.pages.first)
        except BaseException:
            self._file.close()
            raise
        self.width, self.height = int(self._page.imagewidth), int(self._page.imagelength)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def region(self, x: int, y: int, width: int, height: int) -> Bytes:
        """Return the pixels of a rectangle inside the image.

        Raises:
            ImageError: its data are corrupt or truncated.
        """
        rows, columns, across = self._grid(self._page)
        tops = range(y // rows, -(-(y + height) // rows))
        lefts = range(x // columns, -(-(x + width) // columns))
        whole = np.concatenate(
            [np.concatenate([self._segment(self._page, top * across + left) for left in lefts], axis=1) for top in tops]
        )
        y0, x0 = y % rows, x % columns
        return np.ascontiguousarray(whole[y0 : y0 + height, x0 : x0 + width])

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
        page = self._level(size / samples)
        scale = self.width / page.imagewidth
        step = max(1, int(size / scale / samples))
        height, width = -(-page.imagelength // step), -(-page.imagewidth // step)
        found = np.zeros((height, width), dtype=np.bool_)
        rows, columns, across = self._grid(page)
        for index in range(math.prod(page.chunked[:2])):
            top, left = index // across * rows, index % across * columns
            piece = self._segment(page, index)[-top % step :: step, -left % step :: step]
            y, x = -(-top // step), -(-left // step)
            piece = piece[: height - y, : width - x]
            found[y : y + piece.shape[0], x : x + piece.shape[1]] = ~is_background(piece)
        return found, scale * step

    def _level(self, most: float) -> TiffPage:
        """Return the coarsest level on which a pixel is at most `most` of the image's own pixels wide."""
        coarsest = self._page
        try:
            levels = self._file.series[0].levels
        except _BROKEN as error:
            raise ImageError(f"image is corrupt or truncated: {error}") from error
        for level in levels:
            page = level.keyframe
            if coarsest.imagewidth > page.imagewidth >= self.width / most and page.dtype == self._page.dtype:
                coarsest = self._checked(page)
        return coarsest

    def _grid(self, page: TiffPage) -> tuple[int, int, int]:
        """Return a segment's height and width, and how many of them lie side by side."""
        return int(page.chunks[0]), int(page.chunks[1]), int(page.chunked[1])

    def _segment(self, page: TiffPage, index: int) -> Bytes:
        """Return the pixels of a tile or strip, cut at the image's edges."""
        rows, columns, across = self._grid(page)
        height = min(rows, page.imagelength - index // across * rows)
        width = min(columns, page.imagewidth - index % across * columns)
        count = page.databytecounts[index]
        if count == 0:
            # A tile that was never written: libtiff reads it as zeros too.
            return np.zeros((height, width, page.samplesperpixel)[: page.ndim], dtype=np.uint8)
        try:
            handle = page.parent.filehandle
            handle.seek(page.dataoffsets[index])
            data = handle.read(count)
            options = {"jpegtables": page.jpegtables} if page.jpegtables else {}
            # Not read inside this call: to choose a decoder, tifffile moves in the file.
            decoded = page.decode(data, index, **options)[0]
        except _BROKEN as error:
            raise ImageError(f"image is corrupt or truncated: {error}") from error
        if decoded is None or decoded.shape[1] < height or decoded.shape[2] < width:
            raise ImageError("image is corrupt or truncated: a tile or strip is too short")
        pixels = np.asarray(decoded[0, :height, :width])
        if pixels.dtype == np.uint16:
            # As in `plurum.images`: the high byte.
            pixels = pixels >> 8
        if _kind(page) == "MINISWHITE":
            pixels = 255 - pixels
        return (pixels[..., 0] if page.ndim == 2 else pixels).astype(np.uint8)

    def _checked(self, page: TiffPage) -> TiffPage:
        """Return `page` if it can be read by regions as `plurum.images` would read the whole."""
        kind = _kind(page)
        tag = page.tags.get("Orientation")
        if page.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"image has pixels of type {page.dtype}: 8- or 16-bit grey or colour is needed")
        if kind not in _KINDS or (kind == "YCBCR" and page.compression != _JPEG):
            raise ImageError(f"image of kind {kind} can't be read by tiles: save it as grey or RGB")
        if page.ndim != (2 if page.samplesperpixel == 1 else 3) or page.planarconfig != 1 or page.samplesperpixel == 2:
            raise ImageError(
                f"image of shape {list(page.shape)} can't be read by tiles: save it with interleaved colours"
            )
        if tag is not None and tag.value != _UPRIGHT:
            raise ImageError("image is turned by its Orientation tag and can't be read by tiles: save it upright")
        if math.prod(page.chunks[:2]) > MAX_PIXELS:
            raise ImageError(
                f"image has strips of {page.chunks[1]} x {page.chunks[0]} pixels, more than the {MAX_PIXELS:,} that "
                f"are decoded at once: save it as a tiled TIFF"
            )
        return page


def _kind(page: TiffPage) -> str:
    """Return how the samples are to be understood, by TIFF's name for it; of a kind without a name, its number."""
    return str(getattr(page.photometric, "name", page.photometric))
