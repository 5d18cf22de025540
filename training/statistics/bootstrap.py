"""Bootstrap intervals over patients, or over images if no patient is known.

Images of one patient resemble each other and are not independent. Patients are therefore drawn with replacement, each
with all images (cluster bootstrap, Field & Welsh 2007). Intervals are percentiles of the draws (Efron & Tibshirani
1993, 13.3).

Legend: groups are `[images]`, int64, as numbered by `plurum.run.number_patients`. Counts
are `[images, draws]`, float32: how often each image occurs in each draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plurum.predictions.arrays import Floats, Ints

__all__ = ["LEVEL", "Bootstrap", "mean_interval", "percentile_interval"]

Counts = npt.NDArray[np.float32]

# Confidence level of intervals.
LEVEL = 0.95
# Cells of one block of counts (8 MB), so that memory does not grow with the draws.
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """Reproducible draws of groups with replacement.

    Figures of several models over the same blocks are paired: the interval of their difference is that of the draws'
    differences (Efron & Tibshirani 1993, 16).

    Attributes:
        groups: Group of each image, `[images]`, from 0 without gaps.
        draws: Number of draws.
        seed: Random seed of the draws.
    """

    groups: Ints
    draws: int
    seed: int

    def blocks(self) -> Iterator[Counts]:
        """Yield counts in blocks, `[images, draws of the block]`; the blocks hold `draws` draws in total."""
        number = int(self.groups.max()) + 1
        size = max(1, _BLOCK_CELLS // len(self.groups))
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.draws, size):
            columns = min(size, self.draws - start)
            drawn = rng.integers(0, number, (columns, number)) * columns + np.arange(columns)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=number * columns).reshape(number, columns)
            yield counts.astype(np.float32)[self.groups]


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of the middle `level` of `values` `[draws]` without NaN; NaN if all are NaN."""
    finite = values[~np.isnan(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: Floats, bootstrap: Bootstrap, *, level: float = LEVEL, weights: Floats | None = None
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of `values`.

    Args:
        values: Value of each image, `[images]`.
        bootstrap: Bootstrap draws over the groups of these images.
        level: Confidence level.
        weights: Weight of each image, `[images]`; 1 by default.
    """
    weights = np.ones(len(values)) if weights is None else weights
    means = [(weights * values) @ counts / (weights @ counts) for counts in bootstrap.blocks()]
    return percentile_interval(np.concatenate(means), level)
