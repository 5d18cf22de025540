"""Give the outlier test the images of a site as its reference, or keep the fit's if they are too few.

The detectors stay: they know no image of the site, so that its images are as new to them as those of the next patients.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.errors import OutputError
from plurum.files import write_bytes
from plurum.predictions.arrays import Floats, Ints
from plurum.spec import OutlierRule
from plurum.training.fitting.outliers import least_alpha
from plurum.training.statistics.patients import draw_equally
from plurum.voting import outlier_test_from_ensemble

__all__ = ["SiteOutliers", "fit_site_outliers", "write_reference"]


@dataclass(frozen=True)
class SiteOutliers:
    """Outlier test of a site.

    Attributes:
        rule: Outlier test; None if the fit has none.
        rows: Indices of the site's images that are its reference, `[reference images]`; None keeps the fit's.
        lines: What was fitted or stayed, one sentence each.
    """

    rule: OutlierRule | None
    rows: Ints | None = None
    lines: tuple[str, ...] = ()


def fit_site_outliers(
    old: OutlierRule | None, novelty: Floats, groups: Ints, weights: Floats | None, *, is_biased: bool, seed: int = 0
) -> SiteOutliers:
    """Return the outlier test with a reference of the site, if it has enough patients for alpha.

    Of weighted images, the reference is a sample that needs no weights; see `draw_equally`. Corrections without audits
    are no reference: the server chose them for review, outliers among them.

    Args:
        old: Test of the fit; None without one.
        novelty: Novelty of each image of the site by member, `[images, members]`.
        groups: Group of each image, int64 `[images]`; images of one patient share a group.
        weights: Weight of each image, `[images]`; None if all weigh the same.
        is_biased: True for corrections without audits.
        seed: Random seed of the sample.
    """
    test = None if old is None else outlier_test_from_ensemble({"outliers": old.model_dump()})
    if old is None or test is None:
        return SiteOutliers(None)
    flagged = np.average(test.test(novelty)[1], weights=weights)
    stays = f"the fit's reference stays, and {flagged:.1%} of these images have a p-value below {old.alpha:g}"
    if is_biased:
        return SiteOutliers(old, lines=(f"outliers: {stays}: images that were chosen for review are no reference",))
    rows = np.arange(len(novelty)) if weights is None else draw_equally(weights, seed)
    patients = len(np.unique(groups[rows]))
    if (least := least_alpha(patients)) > old.alpha:
        line = (
            f"outliers: {stays}; the rate of false alarms here is not known, because a reference of {patients:,} "
            f"patients allows no p-value below {least:g}"
        )
        return SiteOutliers(old, lines=(line,))
    rule = old.model_copy(update={"split": "site"}).with_reference(test.score(novelty[rows]), groups[rows])
    line = (
        f"outliers: the reference is of {patients:,} patients of the site; with the fit's, {flagged:.1%} of these "
        f"images had a p-value below {old.alpha:g}"
    )
    return SiteOutliers(rule, rows, (line,))


def write_reference(path: Path, rows: Ints | None, pixels: npt.NDArray[np.uint8], groups: Ints) -> None:
    """Write the reference images of a site to the .npz file `path`, atomically, or remove it if there are none.

    Args:
        path: File of the reference images.
        rows: Indices of the reference images; None for none.
        pixels: All images of the site, uint8 `[images, height, width, 3]`.
        groups: Group of each image, int64 `[images]`.

    Raises:
        OutputError: the file can't be written or removed.
    """
    if rows is None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path} can't be removed: {error}. Remove it.") from error
        return
    data = io.BytesIO()
    np.savez(data, pixels=pixels[rows], groups=groups[rows])
    write_bytes(path, data.getvalue())
