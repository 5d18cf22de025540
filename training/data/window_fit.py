"""Fit of a window to percentiles of the training images' values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError, ImageError
from plurum.images import UnreadableImageError, grey_values
from plurum.images.windows import Window, WindowRule, window_from_range
from plurum.settings.training import Percentiles
from plurum.training.data.labelled_images import LabelledImages

__all__ = ["fit_window"]

# Values that are kept of each image: at most so many, and at least so many even of many images, 128 MB in all.
_MOST, _LEAST, _ALL = 4096, 64, 1 << 24
# Smallest part of the range by which float64 may misplace its ends.
_PRECISION = 1e-4


def fit_window(data: LabelledImages, rule: WindowRule | Percentiles | None) -> LabelledImages:
    """Return the images with a window from percentiles of the training images; unchanged for other rules.

    Each training image has the same weight, whatever its size: it gives evenly spaced order statistics. The least and
    the greatest value of all are exact. Images of 8 bits and colours don't count. Unreadable images are left out.

    Args:
        data: Labelled images, of which the training images count.
        rule: Percentiles, or another rule.

    Raises:
        DataError: no training image has more than 8 bits, or the percentiles are equal.
    """
    if not isinstance(rule, Percentiles):
        return data
    train = data.select(data.table.rows("train"))
    count = min(_MOST, max(_LEAST, _ALL // max(1, len(train))))
    found = [one for one in train.map_each(lambda index: _order_statistics(train, index, count)) if one is not None]
    if not found:
        raise DataError(
            f"--window: expected grey training images of more than 8 bits, or grey DICOM, to fit percentiles to, got "
            f"none in {data.name}. Leave it out"
        )
    samples = np.stack(found)
    lowest, highest = _percentile(samples, rule.lowest), _percentile(samples, rule.highest)
    window = window_from_range(lowest, highest)
    if not highest > lowest or abs(window[1] - 1 - (highest - lowest)) > _PRECISION * (highest - lowest):
        raise DataError(
            f"--window: the values at {rule.lowest:g} % and {rule.highest:g} % of the training images are {lowest:g} "
            f"and {highest:g}, too close to tell apart. Give other percentiles, or scale the values"
        )
    note = (
        f"--window {rule.lowest:g}%,{rule.highest:g}% is {_text(window)}, from {lowest:g} to {highest:g}, by "
        f"{len(found):,} training images"
    )
    return replace(data, window=window, notes=(*data.notes, note))


def _order_statistics(data: LabelledImages, index: int, count: int) -> npt.NDArray[np.float64] | None:
    """Return the least value, `count` order statistics and the greatest value; None without values."""
    try:
        values = grey_values(data.read_encoded(index))
    except (ImageError, UnreadableImageError):
        # The images are checked when they are decoded.
        return None
    if values is None:
        return None
    flat: npt.NDArray[Any] = values[np.isfinite(values)]
    if not flat.size:
        return None
    flat.sort()
    places = ((np.arange(count) + 0.5) / count * flat.size).astype(np.int64)
    return np.asarray(flat[np.concatenate([[0], places, [flat.size - 1]])], np.float64)


def _percentile(samples: npt.NDArray[np.float64], percentile: float) -> float:
    """Return a percentile of samples `[images, count + 2]`, of which the first and last are the ends."""
    if percentile in {0, 100}:
        return float(samples[:, 0].min() if percentile == 0 else samples[:, -1].max())
    return float(np.percentile(samples[:, 1:-1], percentile))


def _text(window: Window) -> str:
    return ",".join(f"{value:.10g}" for value in window)
