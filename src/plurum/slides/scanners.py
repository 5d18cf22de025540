"""Slides that tifffile can't read by tiles: scanners' own formats, read by OpenSlide, and small images.

Legend: `[height, width, 3]` arrays are uint8, 0 to 255, RGB.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plurum.errors import ImageError
from plurum.images import TooLargeImageError, UnreadableImageError, open_image, to_eight_bit
from plurum.images.windows import WindowRule
from plurum.predictions.arrays import Bytes
from plurum.regular_files import MAX_IMAGE_BYTES, check_regular, read_regular
from plurum.slides.slides import Level, Slide

if TYPE_CHECKING:
    from openslide import OpenSlide

__all__ = ["ScannerSlide", "WholeImage", "open_slide"]


# Side of the squares in which a whole level is read, 16 MB each.
_PIECE = 2048


class ScannerSlide:
    """An open slide with the methods of `plurum.slides.slides.Slide`, read by OpenSlide; unscanned areas are white.

    Args:
        path: Path of the file.

    Raises:
        ImageError: OpenSlide can't read the file.
        ModuleNotFoundError: OpenSlide is not installed.
    """

    def __init__(self, path: Path) -> None:
        from openslide import OpenSlide, OpenSlideError

        self.path = path
        try:
            self._slide: OpenSlide = OpenSlide(path)
        except (OpenSlideError, OSError) as error:
            raise ImageError(f"OpenSlide can't read it: {error}") from error

    def __enter__(self) -> ScannerSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self._slide.close()

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """Levels from the largest to the smallest."""
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        return tuple(Level(width, height, float(scale)) for (width, height), scale in sizes)

    @functools.cached_property
    def microns_per_pixel(self) -> float | None:
        """Resolution of level 0 in µm per pixel, the mean of both directions; None if unknown."""
        try:
            sizes = [float(self._slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy"]
        except (KeyError, ValueError):
            return None
        return float(np.sqrt(sizes[0] * sizes[1])) or None

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:
        """Return the pixels of a rectangle inside the image, given in pixels of `level`.

        Raises:
            ImageError: the data are corrupt or truncated; the message names level and place.
        """
        from openslide import OpenSlideError
        from PIL import Image

        scale = self.levels[level].scale
        try:
            layer = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except OpenSlideError as error:
            place = f"{width} x {height} pixels of level {level}, at pixel ({x}, {y})"
            raise ImageError(f"image is corrupt or truncated: {place}: {error}") from error
        return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))

    def sample(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:
        """Yield every `step`-th pixel of a level in pieces, each with its row and column in the result.

        Raises:
            ImageError: as for `region`.
        """
        size, side = self.levels[level], max(1, _PIECE // step) * step
        for y in range(0, size.height, side):
            for x in range(0, size.width, side):
                piece = self.region(x, y, min(side, size.width - x), min(side, size.height - y), level)
                yield y // step, x // step, piece[::step, ::step]


class WholeImage:
    """An image that is decoded at once, with the methods of a slide.

    Args:
        path: Path of the file.
        window: Window, as for `plurum.images.open_image`.

    Raises:
        UnreadableImageError: the image can't be decoded, see `plurum.images`.
        OSError: the file can't be read.
    """

    microns_per_pixel: float | None = None

    def __init__(self, path: Path, window: WindowRule | None = None) -> None:
        self.path = path
        self._pixels = np.asarray(to_eight_bit(open_image(read_regular(path, MAX_IMAGE_BYTES), window=window)))
        height, width = self._pixels.shape[:2]
        self.levels = (Level(width, height, 1.0),)

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Bytes:  # noqa: ARG002 - the only level
        """Return the pixels of a rectangle inside the image, which has one level."""
        return np.ascontiguousarray(self._pixels[y : y + height, x : x + width])

    def sample(self, level: int, step: int) -> Iterator[tuple[int, int, Bytes]]:  # noqa: ARG002 - the only level
        """Yield every `step`-th pixel of the image in one piece."""
        yield 0, 0, self._pixels[::step, ::step]


def open_slide(path: Path, stack: ExitStack, window: WindowRule | None = None) -> Slide | ScannerSlide | WholeImage:
    """Return an open slide, which `stack` closes: read by tifffile, else by OpenSlide, else as a whole if it is small.

    Args:
        path: Path of the file.
        stack: Stack that closes the slide.
        window: Window that the server applies to grey of more than 8 bits; it is applied here.

    Raises:
        ImageError: no reader can open the file; the message names OpenSlide if it is not installed.
        MissingExtraError: tifffile is not installed.
    """
    try:
        check_regular(path)
        slide = stack.enter_context(Slide(path))
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror}") from error
    except ImageError as error:
        reason = str(error)
    else:
        return slide if window is None or not slide.is_deep else _whole_image(path, window)
    try:
        return stack.enter_context(ScannerSlide(path))
    except ImageError as error:
        more = str(error)
    except ModuleNotFoundError:
        more = "OpenSlide, which may read it, is not installed: pip install 'plurum[openslide]'"
    try:
        return WholeImage(path, window)
    except TooLargeImageError as error:
        raise ImageError(f"{reason}; {more}") from error
    except (UnreadableImageError, OSError) as error:
        raise ImageError(f"{error}; {more}") from error


def _whole_image(path: Path, window: WindowRule) -> WholeImage:
    """Return a grey image of 16 bits with a window, which OpenSlide would not apply."""
    try:
        return WholeImage(path, window)
    except (UnreadableImageError, OSError) as error:
        raise ImageError(str(error)) from error
