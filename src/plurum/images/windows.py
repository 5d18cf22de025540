"""Windows: linear rules that map grey values with more than 8 bits to 8 bits (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3).

Legend: `[height, width]` values have any numeric type; 8-bit values are uint8, 0 to 255.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "FULL",
    "WINDOW_FUNCTIONS",
    "Window",
    "WindowRule",
    "apply_window",
    "eight_bit_from_shares",
    "shares_from_window",
    "window_from_json",
    "window_from_range",
]

# Centre and width, in the units of the values, such as Hounsfield units.
Window = tuple[float, float]
# A window, or the full range of the type of each image's values.
WindowRule = Window | Literal["full"]
FULL: Literal["full"] = "full"
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# Rows that are mapped at once, so that a large image is not held as float64.
_ROWS = 256


def shares_from_window(
    values: npt.NDArray[np.float64], window: Window, function: str = "LINEAR"
) -> npt.NDArray[np.float64]:
    """Return the place of values in a window, 0 to 1.

    Args:
        values: The values.
        window: Centre and width; the width is at least 1 for `LINEAR`, and above 0 for the others.
        function: One of `WINDOW_FUNCTIONS`.
    """
    centre, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def eight_bit_from_shares(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return values of 0 to 1 as 0 to 255."""
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)


def window_from_range(lowest: float, highest: float) -> Window:
    """Return the window that maps `lowest` to 0 and a larger `highest` to 255."""
    return (lowest + highest + 1) / 2, highest - lowest + 1


def window_from_json(given: Any) -> WindowRule | None:
    """Return a window as an image spec states it in JSON; None if there is none."""
    return given if given in (None, FULL) else (float(given[0]), float(given[1]))


def apply_window(values: npt.NDArray[Any], rule: WindowRule) -> npt.NDArray[np.uint8]:
    """Return values as 8 bits; NaN becomes 0.

    Args:
        values: Values `[height, width]` of 16 or 32 bits.
        rule: The window; the full range applies to integers only.
    """
    if values.dtype.itemsize == 2:
        # Small negative numbers have the bits of large positive ones.
        return np.asarray(_table(values.dtype.kind, rule)[values.view(np.uint16)])
    window = _window(values.dtype, rule)
    result = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        rows = slice(top, top + _ROWS)
        result[rows] = eight_bit_from_shares(np.nan_to_num(shares_from_window(values[rows].astype(np.float64), window)))
    return result


@functools.lru_cache(maxsize=8)
def _table(kind: str, rule: WindowRule) -> npt.NDArray[np.uint8]:
    """Return the 8-bit value of all 65,536 numbers of 16 bits, by their bits."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(f"{kind}2")
    return eight_bit_from_shares(shares_from_window(numbers.astype(np.float64), _window(numbers.dtype, rule)))


def _window(dtype: np.dtype[Any], rule: WindowRule) -> Window:
    if rule != FULL:
        return rule
    limits = np.iinfo(dtype)
    return window_from_range(float(limits.min), float(limits.max))
