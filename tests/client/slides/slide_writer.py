"""Slides made up for tests: a disc of tissue on glass with something planted in it, as pyramids of tiles."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

__all__ = ["GLASS", "MICRONS", "TISSUE", "PlantedTile", "write_slide_file"]

Colour = tuple[int, int, int]

GLASS: Colour = (238, 236, 240)
TISSUE: Colour = (214, 150, 190)
# Of a pixel of level 0.
MICRONS = 0.25
_SIDE = 256


@dataclass(frozen=True)
class PlantedTile:
    """A square in the tissue.

    Attributes:
        x: Of its left edge, as a share of the slide's width.
        y: Upper edge, as a fraction of the side.
        side: Side, as a fraction of the side of the slide.
        colour: Its own.
    """

    x: float = 0.5
    y: float = 0.42
    side: float = 0.1
    colour: Colour = (90, 40, 130)


def write_slide_file(path: Path, size: int, levels: int, planted: PlantedTile, **options: Any) -> Path:
    """Write a square slide; each tile is compressed once, however often it comes.

    The tissue is a disc of 0.2 of the width around the middle; glass is flat, so that files stay small.

    Args:
        path: Where to.
        size: Its side at level 0, pixels.
        levels: Of its pyramid, each half as large as the one before.
        planted: What lies in the tissue.
        options: More of `tifffile.TiffWriter.write`'s, for level 0.
    """
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for level in range(levels):
            side = size >> level
            more = options if level == 0 else {"subfiletype": 1}
            if level == 0:
                per_cm = round(10_000 / MICRONS)
                more = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "subifds": levels - 1} | more
            file.write(
                _tiles(side, planted),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(_SIDE, _SIDE),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                **more,
            )
    return path


def _tiles(side: int, planted: PlantedTile) -> Iterator[bytes]:
    known: dict[bytes, bytes] = {}
    for top in range(0, side, _SIDE):
        for left in range(0, side, _SIDE):
            pixels = _pixels(left, top, side, planted).tobytes()
            if pixels not in known:
                known[pixels] = zlib.compress(pixels, 1)
            yield known[pixels]


def _pixels(left: int, top: int, side: int, planted: PlantedTile) -> npt.NDArray[np.uint8]:
    y, x = (np.arange(_SIDE)[:, None] + top + 0.5) / side, (np.arange(_SIDE)[None] + left + 0.5) / side
    pixels = np.empty((_SIDE, _SIDE, 3), dtype=np.uint8)
    pixels[:] = GLASS
    if (left / side - 0.5) ** 2 < 0.1 and (top / side - 0.5) ** 2 < 0.1:
        pixels[np.square(x - 0.5) + np.square(y - 0.5) < 0.2**2] = TISSUE
    inside = (x >= planted.x) & (x < planted.x + planted.side) & (y >= planted.y) & (y < planted.y + planted.side)
    pixels[inside] = planted.colour
    return pixels
