"""Detection of tissue on slides, and their division into tiles. NumPy only.

Legend: `[height, width]` and `[height, width, samples]` arrays are uint8, 0 to 255: grey, RGB or RGBA.
"""

from __future__ import annotations

import numpy as np

from plurum.predictions.arrays import Bools, Bytes

__all__ = ["LEAST_TISSUE", "is_background", "otsu_threshold", "tile_starts", "tissue_mask", "tissue_share"]


# Least fraction of tissue in a tile; tiles with less are mostly glass.
LEAST_TISSUE = 0.1
# Glass is slightly darker than white, unscanned areas are black, and tissue is stained.
_NEARLY_WHITE, _NEARLY_EMPTY = 220, 10
# Largest darkness (255 minus the darkest channel) of glass: of the fixed rule, and the limit for Otsu's threshold.
_FIXED, _DARKEST = 255 - _NEARLY_WHITE, 90
# Otsu's method splits any data. Accept the split only if both parts differ enough and the lighter one can be glass.
_LEAST_CONTRAST, _DARKEST_GLASS = 40, 70


def is_background(pixels: Bytes) -> Bools:
    """Return which pixels show no tissue: all channels at least 220 (glass) or at most 10 (unscanned).

    Args:
        pixels: Pixels, `[height, width]` or `[height, width, samples]`; a fourth sample, opacity, is ignored.
    """
    colours = _colours(pixels)
    return np.asarray(np.all(colours >= _NEARLY_WHITE, axis=-1) | _is_empty(colours), dtype=np.bool_)


def tissue_mask(pixels: Bytes) -> Bools:
    """Return which pixels show tissue, with a threshold adapted to the slide's glass.

    The darkness of a pixel is that of its darkest channel, as stain absorbs light in at least one channel. Otsu's
    threshold separates glass and tissue if there are two kinds of pixels and the lighter one can be glass. Otherwise,
    as on slides with only tissue or only glass, the rule of `is_background` applies. It is also the lowest threshold.

    Args:
        pixels: Thumbnail of a whole slide, `[height, width]` or `[height, width, samples]`.
    """
    colours = _colours(pixels)
    darkness, empty = 255 - colours.min(axis=-1), _is_empty(colours)
    return np.asarray((darkness > _threshold(darkness[~empty])) & ~empty, dtype=np.bool_)


def otsu_threshold(values: Bytes) -> int | None:
    """Return the best threshold between lower and higher `values`; None if all are equal.

    It maximises the variance between the two classes (Otsu 1979, "A threshold selection method from gray-level
    histograms"). The lower class includes the threshold. If several thresholds are equivalent, as between two distant
    peaks, the middle one is returned.
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
    """Return the starts of the fewest tiles of `size` that cover `length` pixels, evenly spaced."""
    count = -(-length // size)
    return [0] if count <= 1 else [round(index * (length - size) / (count - 1)) for index in range(count)]


def tissue_share(tissue: Bools, cell: float, box: tuple[int, int, int, int]) -> float:
    """Return the fraction of a rectangle that shows tissue, 0 to 1.

    Args:
        tissue: Coarse grid, True where there is tissue.
        cell: Width of a grid cell in pixels.
        box: Rectangle as x, y, width and height in pixels.
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
