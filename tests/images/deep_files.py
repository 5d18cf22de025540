"""Grey images of more than 8 bits in all formats that hold them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from tests.images.dicom_files import dicom
from tests.pixel_matrix.png_cells import png

__all__ = ["FILES", "HIGHEST", "LOWEST", "as_tiff", "drawn"]

Values = npt.NDArray[Any]

# Least and greatest values of the planted images, which no rule takes from the file.
LOWEST, HIGHEST = 1000, 3000


def drawn(dtype: str, lowest: float = LOWEST, highest: float = HIGHEST) -> Values:
    values = np.random.default_rng(0).uniform(lowest, highest, (24, 32)).astype(dtype)
    values[0, 0], values[0, 1] = lowest, highest
    return values


def as_tiff(values: Values, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", metadata=None, **options)
    return file.getvalue()


def as_png(values: Values) -> bytes:
    return png(values[..., None].astype(np.uint64), 16, 0)


FILES: dict[str, tuple[str, Callable[[Values], bytes]]] = {
    "PNG": ("u2", as_png),
    "TIFF of 16 bits": ("u2", as_tiff),
    "TIFF of 16 signed bits": ("i2", as_tiff),
    "TIFF of 32 bits": ("u4", as_tiff),
    "TIFF of 32 signed bits": ("i4", as_tiff),
    "floating-point TIFF": ("f4", as_tiff),
    "floating-point TIFF, LZW": ("f4", lambda values: as_tiff(values, compression="lzw")),
    "TIFF that states 12 bits": ("u2", lambda values: as_tiff(values, extratags=[(281, 3, 1, 4095, True)])),
    "DICOM": ("u2", dicom),
    "DICOM with signed values": ("i2", dicom),
    "DICOM with its own window": ("u2", lambda values: dicom(values, WindowCenter=5, WindowWidth=3)),
}
