"""Compare two results of `plurum bench`, case by case: better, worse, or no difference beyond noise."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from plurum.benchmarks.bench.result import BenchResult, Case
from plurum.errors import DataError
from plurum.spec import Metadata

__all__ = ["BenchComparison", "Ratio", "compare_benches"]

Verdict = Literal["better", "worse", "no difference beyond noise"]
_CONFIDENCE = 0.95
# Figures to compare; True if higher is better.
_FIELDS = {"images_per_s": True, "p50_ms": False, "p99_ms": False}


class Ratio(Metadata):
    """Ratio of a figure of the second result to the same figure of the first.

    Attributes:
        case: Case in words; `all` for the geometric mean over all cases.
        field: Field of `Measurement`.
        first: Median over turns of the first result; None for all cases together.
        second: Median over turns of the second result; None for all cases together.
        ratio: Second over first, of geometric means over turns.
        low: Lower end of the ratio's 95 % interval.
        high: Upper end of the ratio's 95 % interval.
        verdict: Verdict on the second result; no difference if the interval includes 1.
    """

    case: str
    field: str
    first: float | None = None
    second: float | None = None
    ratio: float
    low: float
    high: float
    verdict: Verdict


class BenchComparison(Metadata):
    """Comparison of two results.

    Attributes:
        ratios: Ratios of all cases together, then of each case.
        only_first: Cases that only the first result has.
        only_second: Cases that only the second result has.
        differences: Other differences: machine, versions, images.
    """

    ratios: tuple[Ratio, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    differences: tuple[str, ...]


def compare_benches(first: BenchResult, second: BenchResult) -> BenchComparison:
    """Return the ratio of every case that both results have, with an interval from the scatter of turns.

    Intervals are Welch's, of the difference of mean logarithms over turns. They cover the noise within each result; a
    machine that was slower throughout one of the results looks like a worse result.

    Raises:
        DataError: The results have no case in common, or one has fewer than two turns.
    """
    for result in (first, second):
        if result.repeats < 2:
            raise DataError(f"the bench of {result.asked} has {result.repeats} turn: measure with --repeats 2 or more")
    cases = [case for case in first.cases() if case in second.cases()]
    if not cases:
        raise DataError("the two benches have no model, protocol and load in common")
    ratios = [
        _ratio("all", field, _together(first, cases, field), _together(second, cases, field)) for field in _FIELDS
    ]
    for case in cases:
        ratios += [_ratio(str(case), field, first.values(case, field), second.values(case, field)) for field in _FIELDS]
    return BenchComparison(
        ratios=tuple(ratios),
        only_first=tuple(str(case) for case in first.cases() if case not in cases),
        only_second=tuple(str(case) for case in second.cases() if case not in cases),
        differences=tuple(_differences(first, second)),
    )


def _together(result: BenchResult, cases: list[Case], field: str) -> list[float]:
    """Return each turn's geometric mean over `cases`; throughput excludes cases whose rate was given."""
    if field == "images_per_s":
        cases = [case for case in cases if case.load.kind == "concurrency"] or cases
    return [float(value) for value in stats.gmean([result.values(case, field) for case in cases], axis=0)]


def _ratio(case: str, field: str, first: list[float], second: list[float]) -> Ratio:
    middle, half = _welch(np.log(first), np.log(second))
    low, high = middle - half, middle + half
    verdict: Verdict = "no difference beyond noise"
    if low > 0 or high < 0:
        verdict = "better" if (middle > 0) == _FIELDS[field] else "worse"
    medians = {} if case == "all" else {"first": float(np.median(first)), "second": float(np.median(second))}
    ratio, low, high = map(math.exp, (middle, low, high))
    return Ratio(case=case, field=field, **medians, ratio=ratio, low=low, high=high, verdict=verdict)


def _welch(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the difference of the means and half of its 95 % interval (Welch 1947)."""
    squares = [float(turns.var(ddof=1)) / len(turns) for turns in (first, second)]
    middle = float(second.mean() - first.mean())
    # Identical turns have no scatter.
    if not sum(squares):
        return middle, 0.0
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(turns) - 1) for square, turns in zip(squares, (first, second), strict=True)
    )
    return middle, float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(sum(squares))


def _differences(first: BenchResult, second: BenchResult) -> list[str]:
    stated = [
        {
            **{name: one.machine.get(name) for name in ("processor", "cores")},
            **{name: one.versions.get(name) for name in sorted({*first.versions, *second.versions})},
            "images": one.images,
            "seconds a turn": one.seconds,
        }
        for one in (first, second)
    ]
    return [f"{name}: {one} and {stated[1][name]}" for name, one in stated[0].items() if one != stated[1][name]]
