"""Decide whether the large JPEGs of a run are decoded at a reduced scale, by how much that changes their pixels."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from plurum.errors import ImageError
from plurum.images import UnreadableImageError, open_image, pixels_from_image, reduction_of, structure_of
from plurum.spec import ImageSpec
from plurum.training.data.labelled_images import LabelledImages

__all__ = ["HIGH_LEVELS", "HIGH_SHARE", "MEAN_LEVELS", "is_within_limits", "with_reduced_decoding"]

# Limits of the change, in levels of 0 to 255, for each image: of the mean, and of this share of the values. A JPEG of
# quality 90 differs from its original by as much.
MEAN_LEVELS = 0.5
HIGH_LEVELS, HIGH_SHARE = 4, 0.999
_SAMPLE = 32

_LOG = logging.getLogger(__name__)


def with_reduced_decoding(data: LabelledImages, image: ImageSpec) -> ImageSpec:
    """Return the image spec, with reduced decoding if that leaves the pixels of large JPEGs nearly unchanged.

    A sample of at most 32 images, evenly spaced, decides. Without large JPEGs in it, images are decoded as wholes.

    Args:
        data: Images of the run.
        image: Image spec of the run.
    """
    reduced = image.model_copy(update={"reduced_decoding": True})
    rows = np.unique(np.linspace(0, len(data) - 1, min(_SAMPLE, len(data))).round().astype(int))
    changes = [one for row in rows if (one := _changes(data, int(row), reduced)) is not None]
    if not changes:
        return image
    if all(map(is_within_limits, changes)):
        _LOG.info("%s: large JPEGs are decoded at a reduced scale", data.name)
        return reduced
    _LOG.info("%s: large JPEGs are decoded as wholes, because a reduced scale would change their pixels", data.name)
    return image


def is_within_limits(changes: npt.NDArray[np.int16]) -> bool:
    """Return True if the absolute changes of an image's values, in levels of 0 to 255, are within the limits."""
    return bool(changes.mean() <= MEAN_LEVELS and np.quantile(changes, HIGH_SHARE) <= HIGH_LEVELS)


def _changes(data: LabelledImages, row: int, reduced: ImageSpec) -> npt.NDArray[np.int16] | None:
    """Return the absolute changes of an image's values; None if it is not reduced or can't be read."""
    try:
        encoded = data.read_encoded(row)
        structure = structure_of(encoded)
        if reduction_of(structure, reduced.decoding["reduce_to"]) == 1:
            return None
        images = (open_image(encoded, structure), open_image(encoded, structure, **reduced.decoding))
        whole, small = (pixels_from_image(one, **reduced.resizing).astype(np.int16) for one in images)
    except (ImageError, UnreadableImageError):
        # `store_data` reports it.
        return None
    changes: npt.NDArray[np.int16] = np.abs(small - whole)
    return changes
