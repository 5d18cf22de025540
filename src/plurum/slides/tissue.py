"""Where a slide shows tissue and where glass, and how it is cut into tiles. NumPy only.

Legend: `[height, width]` and `[height, width, samples]` arrays are uint8, 0 to 255: grey, RGB or RGBA.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_TISSUE", "is_background", "otsu_threshold", "tile_starts", "tissue_mask", "tissue_share"]

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Share of a tile: with less, there is little but glass to see.
LEAST_TISSUE = 0.1
# Glass is a little below white, what the scanner left out is black; tissue is stained.
_NEARLY_WHITE, _NEARLY_EMPTY = 220, 10
# How far below white the darkest channel of glass may lie: of the fixed rule, and at most.
_FIXED, _DARKEST = 255 - _NEARLY_WHITE, 90
# Otsu parts whatever it is given. Two kinds of pixels differ by more than one kind does, and the lighter is glass.
_LEAST_CONTRAST, _DARKEST_GLASS = 40, 70


def is_background(pixels: Bytes) -> Bools:
    """Return which pixels show no tissue: all channels at least 220 (glass) or at most 10 (never scanned).

    Args:
        pixels: `[height, width]` or `[height, width, samples]`; a fourth sample, opacity, plays no part.
    """
    colours = _colours(pixels)
    return np.asarray(np.all(colours >= _NEARLY_WHITE, axis=-1) | _is_empty(colours), dtype=np.bool_)


def tissue_mask(pixels: Bytes) -> Bools:
    """Return which pixels show tissue, by what this slide's own glass looks like.

    A pixel is as dark as its darkest channel: stain takes light from one channel at least. Otsu's threshold between
    glass and tissue is taken where there are two kinds of pixels and the lighter one can be glass. A slide that is all
    tissue or all glass has one kind; then the rule of `is_background` holds, which also is the least that is taken.

    Args:
        pixels: `[height, width]` or `[height, width, samples]`, a whole slide made small.
    """
    colours = _colours(pixels)
    darkness, empty = 255 - colours.min(axis=-1), _is_empty(colours)
    return np.asarray((darkness > _threshold(darkness[~empty])) & ~empty, dtype=np.bool_)


def otsu_threshold(values: Bytes) -> int | None:
    """Return the value that parts `values` best into those at most as large and those larger; None if all are equal.

    Best is where the variance between both is largest (Otsu 1979, "A threshold selection method from gray-level
    histograms"); of several such values, as between two far peaks, the middle one.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return None
    between = np.zeros(256)
    means = sums[parted] / below[parted], (sums[-1] - sums[parted]) / above[parted]
    between[parted] = below[parted] * above[parted] * np.square(means[0] - means[1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return int(best[len(best) // 2])


def tile_starts(length: int, size: int) -> list[int]:
    """Return where tiles of `size` begin along `length` pixels: as few as cover it, evenly spread."""
    count = -(-length // size)
    return [0] if count <= 1 else [round(index * (length - size) / (count - 1)) for index in range(count)]


def tissue_share(tissue: Bools, cell: float, box: tuple[int, int, int, int]) -> float:
    """Return the share of a rectangle that shows tissue, 0 to 1.

    Args:
        tissue: On a coarse grid.
        cell: How many pixels a cell of it is wide.
        box: x, y, width and height in pixels.
    """
    x, y, width, height = box
    rows = slice(int(y / cell), max(int(y / cell) + 1, int((y + height) / cell)))
    columns = slice(int(x / cell), max(int(x / cell) + 1, int((x + width) / cell)))
    return float(tissue[rows, columns].mean())


def _colours(pixels: Bytes) -> Bytes:
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]


def _is_empty(colours: Bytes) -> Bools:
    return np.asarray(np.all(colours <= _NEARLY_EMPTY, axis=-1), dtype=np.bool_)


def _threshold(darkness: Bytes) -> int:
    best = otsu_threshold(darkness)
    if best is None:
        return _FIXED
    lighter, darker = darkness[darkness <= best].mean(), darkness[darkness > best].mean()
    if lighter > _DARKEST_GLASS or darker - lighter < _LEAST_CONTRAST:
        return _FIXED
    return min(max(best, _FIXED), _DARKEST)
