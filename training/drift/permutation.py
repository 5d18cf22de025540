"""Two-sample tests of several outputs at once, with NumPy.

Outputs of a classifier are compared, not images: this finds most shifts, needs no labels and no other model (Rabanser,
Günnemann & Lipton, "Failing Loudly", arXiv 1810.11953). Numbers are compared by the Kolmogorov–Smirnov statistic, and
categories by the chi-squared statistic. Patients are permuted between the two samples as wholes, each with all images:
images of one patient resemble each other, and a test by image would give false alarms. The same permutations serve all
outputs, and the largest standardised statistic of each permutation corrects the p-values for the number of outputs
(single-step max-T, Westfall & Young 1993). It takes their correlation into account, unlike Bonferroni's correction.

Legend: cells are the bins of a number, or categories; counts are `[draws, cells]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.training.statistics.groups import correct_holm

__all__ = ["BinnedOutput", "CountedOutput", "Shift", "bin_numbers", "counted_shifts", "permuted_shifts"]

Kind = Literal["number", "category"]
Singles = npt.NDArray[np.float32]
_A = TypeVar("_A", Singles, Floats)
# Quantiles of both samples together, at which distributions of numbers are compared.
_QUANTILES = 64
# Cells of one block of permutations (16 MB).
_BLOCK_CELLS = 4_000_000
# NumPy's hypergeometric draws accept ten times as many.
_MOST_COUNTED = 100_000_000
# Statistics that differ by rounding are equal.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BinnedOutput:
    """One output of all images of both samples.

    Attributes:
        name: Name of the output.
        kind: `number` for bins that have an order, else `category`.
        bins: Bin or category of each image, int64 `[images]`.
        cells: Number of bins or categories.
    """

    name: str
    kind: Kind
    bins: Ints
    cells: int


@dataclass(frozen=True)
class CountedOutput:
    """Counts of one output in both samples.

    Attributes:
        name: Name of the output.
        kind: `number` for bins that have an order, else `category`.
        reference: Number of images by cell in the reference, int64 `[cells]`.
        answers: Number of images by cell in the other sample, int64 `[cells]`.
    """

    name: str
    kind: Kind
    reference: Ints
    answers: Ints


@dataclass(frozen=True)
class Shift:
    """Difference of one output between two samples.

    Attributes:
        name: Name of the output.
        distance: Largest difference of the distribution functions (Kolmogorov–Smirnov), or for categories the fraction
            of images that would have to change (total variation); 0 to 1.
        p_value: P-value, corrected for the number of outputs.
    """

    name: str
    distance: float
    p_value: float


def bin_numbers(name: str, values: Floats) -> BinnedOutput:
    """Return an output whose bins end at quantiles of all `values` `[images]`."""
    at = np.linspace(0, 1, _QUANTILES + 1)[1:-1]
    limits = np.unique(np.quantile(values, at, method="inverted_cdf"))
    return BinnedOutput(name, "number", np.searchsorted(limits, values), len(limits) + 1)


def permuted_shifts(
    outputs: Sequence[BinnedOutput], is_reference: Bools, groups: Ints, permutations: int, seed: int
) -> list[Shift]:
    """Return the difference of each output, tested by permuting groups of images.

    Args:
        outputs: Outputs of all images.
        is_reference: True for images of the reference, bool `[images]`; both samples have at least one.
        groups: Number of each image's patient, `[images]`; no patient has images in both samples.
        permutations: Number of random permutations.
        seed: Random seed of the permutations.
    """
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    whole = is_reference[first]
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(whole, (permutations, len(whole))), axis=1)
    # The observed assignment is one of those that are possible, so that no p-value is 0.
    chosen = np.concatenate([whole[None], drawn])
    distances, statistics = [], []
    for output in outputs:
        gaps, variances, pooled = _compare_units(output, unit, chosen)
        distances.append(_distance(output.kind, gaps[0]))
        statistics.append(_statistics(output.kind, gaps, variances, pooled))
    standardised = _standardise(np.array(statistics))
    p_values = (standardised.max(axis=0) >= standardised[:, :1] - _ROUNDING).mean(axis=1)
    return _shifts([output.name for output in outputs], distances, p_values)


def counted_shifts(outputs: Sequence[CountedOutput], permutations: int, seed: int) -> list[Shift]:
    """Return the difference of each output, tested by permuting images, which are assumed to be independent.

    Each output is tested alone, because counts don't tell how outputs depend on each other; p-values are corrected by
    Holm's method.

    Args:
        outputs: Counts of both samples, which have at least one image.
        permutations: Number of random permutations.
        seed: Random seed of the permutations.
    """
    rng = np.random.default_rng(seed)
    distances, p_values = [], []
    for output in outputs:
        reference, answers = _limit(output.reference), _limit(output.answers)
        totals = reference + answers
        drawn = rng.multivariate_hypergeometric(totals, int(reference.sum()), permutations, method="marginals")
        counts = np.concatenate([reference[None], drawn]).astype(np.float64)
        first, second = (part / part.sum(axis=1, keepdims=True) for part in (counts, totals - counts))
        gaps = _cumulate(output.kind, first - second)
        # Every draw has as many images in each sample, so that no draw's variance is larger than another's.
        statistics = _statistics(output.kind, gaps, np.ones_like(gaps), totals / totals.sum())
        distances.append(_distance(output.kind, gaps[0]))
        p_values.append(float((statistics >= statistics[0] * (1 - _ROUNDING)).mean()))
    return _shifts([output.name for output in outputs], distances, correct_holm(p_values))


def _limit(counts: Ints) -> Ints:
    """Return counts with the same fractions whose sum NumPy's hypergeometric draws accept."""
    total = int(counts.sum())
    return counts if total <= _MOST_COUNTED else np.floor(counts * (_MOST_COUNTED / total)).astype(np.int64)


def _compare_units(output: BinnedOutput, unit: Ints, chosen: Bools) -> tuple[Floats, Floats, Floats]:
    """Return the differences of fractions, their variances, `[draws, cells]`, and the fractions of all, `[cells]`.

    The variances are those of ratio estimates over units: units of other sizes in one sample than in the other would
    otherwise be taken for a shift (studentised permutation test, Chung & Romano 2013, here as the first-order
    correction of Rao & Scott 1981).

    Args:
        output: Output of all images.
        unit: Unit of each image, from 0 without gaps, `[images]`.
        chosen: Units of the first sample, bool `[draws, units]`.
    """
    counts = np.zeros((chosen.shape[1], output.cells), dtype=np.float32)
    np.add.at(counts, (unit, output.bins), 1.0)
    pooled = counts.sum(axis=0, dtype=np.float64) / len(unit)
    counts = _cumulate(output.kind, counts)
    sizes = np.bincount(unit).astype(np.float32)
    # With images as units, all three products are the same.
    products = [counts] if sizes.max() == 1 else [counts, counts * counts, counts * sizes[:, None]]
    expected = _cumulate(output.kind, pooled)
    gaps, variances = [], []
    rows = max(1, _BLOCK_CELLS // chosen.shape[1])
    for start in range(0, len(chosen), rows):
        drawn = chosen[start : start + rows].astype(np.float32)
        sides = [_ratio(part, products, sizes, expected) for part in (drawn, 1 - drawn)]
        gaps.append(sides[0][0] - sides[1][0])
        variances.append(sides[0][1] + sides[1][1])
    return np.concatenate(gaps), np.concatenate(variances), pooled


def _ratio(drawn: Singles, products: Sequence[Singles], sizes: Singles, expected: Floats) -> tuple[Floats, Floats]:
    """Return the fraction of images in each cell, and its variance over units, `[draws, cells]` each.

    The variance is about the `expected` fractions of both samples, `[cells]`: about a sample's own, it would be 0 where
    the samples differ completely.
    """
    images = (drawn @ sizes).astype(np.float64)[:, None]
    sums = [(drawn @ one).astype(np.float64) for one in products]
    counts, squares, crossed = sums * 3 if len(sums) == 1 else sums
    spread = squares - 2 * expected * crossed + expected**2 * (drawn @ sizes**2).astype(np.float64)[:, None]
    return counts / images, np.maximum(spread, 0.0) / images**2


def _cumulate(kind: Kind, values: _A) -> _A:
    """Return the distribution function of a number's bins; categories stay as they are."""
    return values.cumsum(axis=-1, dtype=values.dtype) if kind == "number" else values


def _statistics(kind: Kind, gaps: Floats, variances: Floats, pooled: Floats) -> Floats:
    """Return the statistic of each draw: Kolmogorov–Smirnov or chi-squared, divided by its scale, `[draws]`."""
    if kind == "number":
        heights, scales = np.abs(gaps).max(axis=1), np.sqrt(variances.max(axis=1))
    else:
        has = pooled > 0
        heights, scales = (gaps[:, has] ** 2 / pooled[has]).sum(axis=1), (variances[:, has] / pooled[has]).sum(axis=1)
    return np.asarray(heights / np.where(scales > 0, scales, 1.0))


def _distance(kind: Kind, gaps: Floats) -> float:
    distance = np.abs(gaps).max() if kind == "number" else np.abs(gaps).sum() / 2
    return float(np.clip(distance, 0.0, 1.0))


def _standardise(statistics: Floats) -> Floats:
    """Return statistics `[outputs, draws]` with mean 0 and deviation 1 over the draws; 0 for one that never varies."""
    spread = statistics.std(axis=1, keepdims=True)
    return np.asarray((statistics - statistics.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0))


def _shifts(names: Sequence[str], distances: Sequence[float], p_values: Iterable[float]) -> list[Shift]:
    rows = zip(names, distances, p_values, strict=True)
    return [Shift(name, distance, float(p_value)) for name, distance, p_value in rows]
