"""Decoding of large JPEGs at a reduced scale, which skips most of the work that resizing would throw away.

libjpeg computes blocks of 4 × 4, 2 × 2 or 1 × 1 pixels instead of 8 × 8 (scaled inverse DCT). Entropy-coded data are
still decoded as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL.Image import Image

from .image_limits import Structure
from .windows import window_from_json

__all__ = ["decoding_from_spec", "ends_in_grey", "reduction_of"]

_BLOCK = 8
_REDUCTIONS = (8, 4, 2)
# The reduced image is at least this many times as large as the members' input. With fewer, pixels of photographs differ
# by more than JPEG's own losses; `python -m plurum.benchmarks.claims.images.reduction` measures both.
_MARGIN = 4
# Distance from 128 of a block that may be the fill of libjpeg; reducing a nearly even block changes it by less.
_NEARLY_GREY = 6


def decoding_from_spec(image: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `open_image` of an image spec, given as the JSON of `ensemble.json`.

    Fields may be absent in files of older versions.
    """
    is_reduced = image.get("reduced_decoding", False)
    return {
        "window": window_from_json(image.get("window")),
        "reduce_to": (image["height"], image["width"]) if is_reduced else None,
    }


def reduction_of(structure: Structure, reduce_to: tuple[int, int] | None) -> int:
    """Return the divisor by which a decoder reduces an image: 8, 4, 2, or 1 for an image that is decoded as a whole.

    Only JPEGs with one scan and without restart markers are reduced, because the others need all their pixels to tell
    if they are complete. Both sides must be multiples of the divisor, so that no part of a pixel lies outside.

    Args:
        structure: Structure of the image.
        reduce_to: Height and width of the pixels to which the image is resized; None decodes it as a whole.
    """
    if reduce_to is None or structure.kind != "JPEG" or not structure.sequential or structure.restarts:
        return 1
    width, height, least = structure.width, structure.height, _MARGIN * max(reduce_to)
    fitting = (one for one in _REDUCTIONS if min(width, height) >= one * least and not width % one and not height % one)
    return next(fitting, 1)


def ends_in_grey(image: Image, reduction: int) -> bool:
    """Return True if the last block of a reduced image may be the grey fill of libjpeg for missing data.

    It is True wherever the check of the whole image finds such a block.
    """
    side = _BLOCK // reduction
    left, top = (image.width - 1) // side * side, (image.height - 1) // side * side
    last = np.asarray(image.crop((left, top, *image.size)))
    return bool((np.abs(last.astype(np.int16) - 128) <= _NEARLY_GREY).all())
