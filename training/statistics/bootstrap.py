"""How far a figure could be off: bootstrap intervals over patients, or over images where no patient is known.

Images of one patient resemble each other, so that a sample of images is a sample of fewer things than it seems: what
is drawn with replacement is patients, each with all their images (cluster bootstrap, Field & Welsh 2007). Intervals
are the percentiles of the draws (Efron & Tibshirani 1993, 13.3).

Legend: groups are `[images]`, int64, as `plurum.training.statistics.calibration.groups_of` numbers them; counts are
`[images, draws]`, float32: how often each image is in each draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "Bootstrap", "mean_interval", "percentile_interval"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float32]

# The share of draws that an interval holds.
LEVEL = 0.95
# What one block of counts may hold, so that memory does not grow with the draws: 8 MB.
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """Draws of groups with replacement, the same ones each time they are asked for.

    Figures of several models that are taken over the same blocks are therefore paired: the interval of their
    difference is that of the draws' differences (Efron & Tibshirani 1993, 16).

    Attributes:
        groups: `[images]`, from 0, without gaps.
        draws: How many samples.
        seed: What they are drawn from.
    """

    groups: Ints
    draws: int
    seed: int

    def blocks(self) -> Iterator[Counts]:
        """Yield the counts of some draws after the other, `[images, draws]`; there are `draws` of them together."""
        number = int(self.groups.max()) + 1
        size = max(1, _BLOCK_CELLS // len(self.groups))
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.draws, size):
            columns = min(size, self.draws - start)
            drawn = rng.integers(0, number, (columns, number)) * columns + np.arange(columns)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=number * columns).reshape(number, columns)
            yield counts.astype(np.float32)[self.groups]


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval that holds the middle `level` of `values` `[draws]`, NaN left out; NaN where all are."""
    finite = values[~np.isnan(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: Floats, bootstrap: Bootstrap, *, level: float = LEVEL, weights: Floats | None = None
) -> tuple[float, float]:
    """Return the interval of the mean of `values` `[images]`, one per image of the bootstrap's groups.

    Args:
        values: To be averaged.
        bootstrap: Which draws.
        level: The share of draws that the interval holds.
        weights: `[images]`, as how many images each counts; None for one each.
    """
    weights = np.ones(len(values)) if weights is None else weights
    means = [(weights * values) @ counts / (weights @ counts) for counts in bootstrap.blocks()]
    return percentile_interval(np.concatenate(means), level)
