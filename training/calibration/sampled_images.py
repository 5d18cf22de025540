"""Weigh the labelled images of a site by how they were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plurum.errors import DataError
from plurum.predictions.arrays import Floats
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.statistics.patients import sampling_weights

__all__ = ["SampledImages", "weigh_images"]

_CHOSEN = "sampling_probability"
# Columns of corrections that `plurum ui` exported.
_CORRECTED = {"answered", "reviewer", "decided_at"}


@dataclass(frozen=True)
class SampledImages:
    """Labelled images of a site, and how they were chosen.

    Attributes:
        data: Images.
        weights: Weight of each image, above 0, `[images]`; None if all weigh the same.
        lines: How they were chosen and what follows from it, one sentence each.
        is_biased: True for images that were chosen for review, without audits that would repair that.
    """

    data: LabelledImages
    weights: Floats | None = None
    lines: tuple[str, ...] = ()
    is_biased: bool = False


def weigh_images(source: str, data: LabelledImages) -> SampledImages:
    """Return images with their weights, 1 / `sampling_probability`, without those of unknown probability.

    Corrections that `plurum ui` exported have this column: with audits, they represent all images of the server. Images
    that a person sent represent only themselves, so they are left out.

    Args:
        source: Data source as given by the user, for messages.
        data: Labelled images.

    Raises:
        DataError: a probability is not a number above 0 to 1.
    """
    if _CHOSEN not in data.table.columns:
        return _unweighted(data)
    chosen = np.array([_probability(source, cell) for cell in data.table.columns[_CHOSEN]])
    known = np.flatnonzero(~np.isnan(chosen))
    if not len(known):
        return _unweighted(data)
    lines: tuple[str, ...] = ()
    if left := len(data) - len(known):
        data, chosen = data.select(known), chosen[known]
        lines = (f"left out: {left:,} images without a {_CHOSEN}, which represent only themselves",)
    if (chosen == chosen[0]).all():
        return _unweighted(data, lines) if chosen[0] == 1 else SampledImages(data, lines=lines)
    return SampledImages(data, sampling_weights(chosen), lines)


def _probability(source: str, cell: str) -> float:
    try:
        value = float(cell) if cell.strip() else np.nan
    except ValueError:
        value = 0.0
    if value <= 0 or value > 1 or (np.isnan(value) and cell.strip()):
        raise DataError(
            f"--on: expected a {_CHOSEN} above 0 to 1, or none, got {cell!r} in {source}. Correct the column."
        )
    return value


def _unweighted(data: LabelledImages, lines: tuple[str, ...] = ()) -> SampledImages:
    """Return images without weights, with a warning about corrections without audits."""
    if not data.table.columns.keys() >= _CORRECTED:
        return SampledImages(data, lines=lines)
    line = (
        "corrections: these images were chosen for review, so they are harder than the site's others; with audits, or "
        "with a random sample of the site, a calibration is better"
    )
    return SampledImages(data, lines=(*lines, line), is_biased=True)
