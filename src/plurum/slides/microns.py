"""Resolution of a slide, from the metadata of its file.

All numbers are micrometres per pixel, the mean of both directions, as pixels of microscopes are almost square.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tifffile import TiffFile

__all__ = ["microns_from_tiff"]

# Units by OME's names; the default is micrometres.
_OME_UNITS = {"": 1.0, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
# Units by the value of the tag ResolutionUnit: inch and centimetre.
_TIFF_UNITS = {2: 25_400.0, 3: 10_000.0}
# Pixels of microscopes are smaller (20 µm is 1,270 per inch). Programs often write the resolution of a screen instead.
_LARGEST = 20.0


def microns_from_tiff(file: TiffFile) -> float | None:
    """Return the resolution from OME-XML, Aperio's description or the resolution tags, in this order."""
    description = str(file.pages.first.description)
    if file.is_ome:
        return _plausible(*_from_ome(file.ome_metadata or ""))
    if aperio := re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", description):
        return _plausible(_number(aperio[1]), _number(aperio[1]))
    return _plausible(*_from_tags(file))


def _from_ome(xml: str) -> tuple[float, float]:
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if pixels is None:
        return 0.0, 0.0
    sizes = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]*)"', pixels[0])
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', pixels[0])
        sizes.append(_number(size[1] if size else "") * _OME_UNITS.get(unit[1] if unit else "", 0.0))
    return sizes[0], sizes[1]


def _from_tags(file: TiffFile) -> tuple[float, float]:
    tags = file.pages.first.tags
    unit, across, down = (tags.get(name) for name in ("ResolutionUnit", "XResolution", "YResolution"))
    microns = _TIFF_UNITS.get(int(unit.value), 0.0) if unit is not None else 0.0
    sizes = []
    for tag in (across, down):
        numerator, denominator = tag.value if tag is not None else (0, 0)
        sizes.append(microns * denominator / numerator if numerator else 0.0)
    return sizes[0], sizes[1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _plausible(across: float, down: float) -> float | None:
    mean = math.sqrt(across * down) if across > 0 and down > 0 else 0.0
    return mean if 0 < mean <= _LARGEST else None
