"""Windows on grey values with more than 8 bits (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["WINDOW_FUNCTIONS", "Window", "eight_bit_from_shares", "shares_from_window"]

# Centre and width, in the units of the values, such as Hounsfield units.
Window = tuple[float, float]
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


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
