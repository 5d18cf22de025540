"""Cells of grey numbers to which a window applies: TIFFs by tifffile and PNGs by hand, of known values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.images.windows import WindowRule
from tests.pixel_matrix.cell import Cell, Pixels, samples, three
from tests.pixel_matrix.png_cells import png
from tests.pixel_matrix.tiff_cells import COMPRESSIONS, LAYOUTS, ORDERS, written

# Only TIFFs of integers have a full range.
_DTYPES = ("uint16", "int16", "uint32", "int32", "float32")
_BITS = 15
# The span is a prime, so that no value lies halfway between two of 255.
_WINDOW = (9000.0, 12_008.0)


def window_cells() -> Iterator[Cell]:
    """Yield all: kinds of numbers x compressions x byte orders x layouts x predictors x rules."""
    rules: tuple[WindowRule, ...] = (_WINDOW, "full")
    plain = samples(_BITS, 1)
    for dtype, compression, order, layout, predictor, rule in product(
        _DTYPES, COMPRESSIONS, ORDERS, LAYOUTS, (1, 2, 3), rules
    ):
        kind = np.dtype(dtype).kind
        if (predictor == 3 and kind != "f") or (predictor > 1 and compression is None):
            continue
        values = (plain.astype(np.int64) - (1 << _BITS - 1) * (kind != "u")).astype(dtype)
        data = written(
            values[..., 0], photometric="minisblack", compression=compression,
            predictor=predictor if predictor > 1 else None, byteorder=order, **LAYOUTS[layout],
        )  # fmt: skip
        if data is not None:
            name = f"WINDOW {rule} {dtype} {compression} {order} {layout} predictor {predictor}"
            yield Cell(name, data, _reference(values, rule), window=rule)
    for interlaced, rule in product((False, True), rules):
        data = png(plain, 16, 0, interlaced=interlaced)
        yield Cell(f"WINDOW {rule} PNG {interlaced}", data, _reference(plain.astype(np.uint16), rule), window=rule)


def _reference(values: npt.NDArray[Any], rule: WindowRule) -> Pixels | None:
    """Return the pixels by the standard's formula for windows; None if the rule does not fit the numbers."""
    lowest: float
    span: float
    if rule == "full":
        if values.dtype.kind == "f":
            return None
        limits = np.iinfo(values.dtype)
        lowest, span = int(limits.min), int(limits.max) - int(limits.min)
    else:
        lowest, span = rule[0] - 0.5 - (rule[1] - 1) / 2, rule[1] - 1
    shares = np.clip((values.astype(np.float64) - lowest) / span, 0, 1)
    return three(np.floor(shares * 255 + 0.5))
