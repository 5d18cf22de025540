"""Outlier test: how unlike the reference images an image is, as a conformal p-value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OutlierTest", "outlier_test_from_ensemble"]

Floats = npt.NDArray[np.float64]
# A sum of fractions of patients may miss a p-value of exactly alpha by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class OutlierTest:
    """Outlier test of an ensemble; see `plurum.spec.OutlierRule`, which states it.

    Attributes:
        alpha: P-value below which an image is an outlier, above 0 and below 1.
        detecting: True for each member that has a detector.
        weights: Weights of the members' novelty, which sum to 1; 0 for members without a detector.
        reference: Scores of the reference images, ascending.
        counts: Fraction of a patient that each reference image counts as; None counts each as one.
        patients: Number of patients of the reference images.
    """

    alpha: float
    detecting: tuple[bool, ...]
    weights: tuple[float, ...]
    reference: tuple[float, ...]
    counts: tuple[float, ...] | None
    patients: int

    @cached_property
    def p_values(self) -> Floats:
        """P-value of a score above exactly 0, 1, … reference scores, `[reference images + 1]`, never increasing.

        Hierarchical conformal prediction (Lee, Barber & Willett, arXiv 2306.06342).
        """
        counts = np.ones(len(self.reference)) if self.counts is None else np.asarray(self.counts, dtype=np.float64)
        at_least = np.append(counts[::-1].cumsum()[::-1], 0.0)
        return np.minimum((1.0 + at_least) / (self.patients + 1), 1.0)

    @property
    def first_outlier(self) -> int:
        """Number of lower reference scores from which a score is an outlier's; more than there are if none can be."""
        return int(np.count_nonzero(self.p_values >= self.alpha * (1 - _ROUNDING)))

    def score(self, novelty: npt.ArrayLike) -> Floats:
        """Return the score of each image, `[batch]`, from the members' novelty, `[batch, members]`."""
        used = np.flatnonzero(self.detecting)
        # Not the other members: they have no novelty.
        scores = np.asarray(novelty, dtype=np.float64)[:, used] @ np.asarray(self.weights, dtype=np.float64)[used]
        # The reference has this precision, and an image of the reference equals itself.
        return np.asarray(scores.astype(np.float32).astype(np.float64))

    def test(self, novelty: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the p-value of each image, and True if it is an outlier, `[batch]` each.

        A novelty of NaN gives a p-value of NaN and an outlier.

        Args:
            novelty: Novelty of each image by member, `[batch, members]`; that of members without a detector is ignored.
        """
        scores = self.score(novelty)
        lower = np.searchsorted(np.asarray(self.reference, dtype=np.float64), scores)
        is_nan = np.isnan(scores)
        return np.where(is_nan, np.nan, self.p_values[lower]), (lower >= self.first_outlier) | is_nan


def outlier_test_from_ensemble(ensemble: Mapping[str, Any]) -> OutlierTest | None:
    """Return the outlier test of a parsed `ensemble.json`; None if it has none."""
    stated = ensemble.get("outliers")
    if stated is None:
        return None
    counts = stated["counts"]
    return OutlierTest(
        alpha=stated["alpha"],
        detecting=tuple(stated["members"]),
        weights=tuple(stated["weights"]),
        reference=tuple(stated["reference"]),
        counts=None if counts is None else tuple(counts),
        patients=stated["patients"],
    )
