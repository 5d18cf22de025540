"""Figures of a decision for one class against all others, as clinicians state them.

Legend: masks are `[images]`. The positive class is the one whose presence is decided. LR is the likelihood ratio.
"""

from __future__ import annotations

import math

import numpy as np

from plurum.figures import FIGURES, Diagnosis
from plurum.predictions.arrays import Bools, Floats
from plurum.training.statistics.bootstrap import LEVEL, Bootstrap, percentile_interval
from plurum.training.statistics.estimates import Estimate, number_or_none, wilson_interval

__all__ = ["FIGURES", "Diagnosis", "diagnose"]


def diagnose(
    positive: str,
    masks: tuple[Bools, Bools],
    bootstrap: Bootstrap,
    *,
    among: Bools | None = None,
    prevalence: float | None = None,
) -> Diagnosis:
    """Return the figures of a decision.

    Where each patient has one image, intervals are closed forms: Wilson's for proportions, Newcombe's for Youden's J
    (1998, method 10), and for likelihood ratios the logarithm's with 0.5 added to each count (Walter 1975). Elsewhere
    patients are drawn. PPV and NPV at a prevalence follow from the likelihood ratios by Bayes' rule.

    Args:
        positive: Name of the positive class.
        masks: Images predicted as positive, and images that are positive.
        bootstrap: Draws over the patients of these images.
        among: Images without review, which alone count; None counts all.
        prevalence: Fraction of positives where the ensemble serves.
    """
    predicted, true = masks
    counted = np.ones_like(true) if among is None else among
    cells = np.array([counted & true & predicted, counted & true & ~predicted])
    cells = np.vstack([cells, [counted & ~true & predicted, counted & ~true & ~predicted]])
    plain = cells.sum(axis=1).astype(np.float64)
    is_independent = int(bootstrap.groups.max()) + 1 == len(bootstrap.groups)
    if is_independent:
        intervals = _closed_intervals(plain, prevalence)
    else:
        counts = np.concatenate([cells.astype(np.float32) @ block for block in bootstrap.blocks()], axis=1)
        patients = np.array([len(np.unique(bootstrap.groups[cell])) for cell in _denominators(cells)])
        intervals = _drawn_intervals(plain, counts.astype(np.float64), patients, prevalence)
    values = _figures(plain, prevalence)
    tp, fn, fp, tn = plain.astype(np.int64).tolist()
    return Diagnosis(
        positive=positive,
        answers="all" if among is None else "unreviewed",
        true_positives=tp,
        false_negatives=fn,
        false_positives=fp,
        true_negatives=tn,
        intervals="by image" if is_independent else "by patient",
        figures={name: _estimate(float(value), *intervals[name]) for name, value in values.items()},
    )


def _estimate(value: float, low: float, high: float) -> Estimate:
    # Intervals with 0.5 added to counts leave out 0 and infinity themselves.
    low, high = min(low, value), max(high, value)
    return Estimate(value=number_or_none(value), low=number_or_none(low), high=number_or_none(high))


def _figures(cells: Floats, prevalence: float | None) -> dict[str, Floats]:
    """Return all figures for counts of true positives, false negatives, false positives and true negatives."""
    tp, fn, fp, tn = cells
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        lr_positive, lr_negative = sensitivity / (1 - specificity), (1 - sensitivity) / specificity
        found = {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "lr_positive": lr_positive,
            "lr_negative": lr_negative,
            "youden": sensitivity + specificity - 1,
        }
    if prevalence is not None:
        found["ppv_at_prevalence"] = _ppv(lr_positive, prevalence)
        found["npv_at_prevalence"] = _npv(lr_negative, prevalence)
    return {name: np.asarray(value) for name, value in found.items()}


def _ppv(lr_positive: Floats, prevalence: float) -> Floats:
    """Return the PPV for a likelihood ratio; 1 for an infinite one."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (1 + (1 - prevalence) / prevalence / lr_positive))


def _npv(lr_negative: Floats, prevalence: float) -> Floats:
    return np.asarray(1 / (1 + prevalence / (1 - prevalence) * np.asarray(lr_negative)))


def _denominators(cells: Bools) -> tuple[Bools, Bools, Bools, Bools]:
    """Return the images of the denominators of sensitivity, specificity, PPV and NPV."""
    tp, fn, fp, tn = cells
    return tp | fn, tn | fp, tp | fp, tn | fn


def _closed_intervals(cells: Floats, prevalence: float | None) -> dict[str, tuple[float, float]]:
    tp, fn, fp, tn = cells.tolist()
    sensitivity, specificity = wilson_interval(tp, tp + fn), wilson_interval(tn, tn + fp)
    lr_positive = _ratio_interval(tp, tp + fn, fp, tn + fp)
    lr_negative = _ratio_interval(fn, tp + fn, tn, tn + fp)
    found = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": wilson_interval(tp, tp + fp),
        "npv": wilson_interval(tn, tn + fn),
        "lr_positive": lr_positive,
        "lr_negative": lr_negative,
        "youden": _sum_interval(cells, sensitivity, specificity),
    }
    return found | _intervals_at_prevalence(lr_positive, lr_negative, prevalence)


def _intervals_at_prevalence(
    lr_positive: tuple[float, float], lr_negative: tuple[float, float], prevalence: float | None
) -> dict[str, tuple[float, float]]:
    """Return the intervals of PPV and NPV, which are monotone in the likelihood ratios."""
    if prevalence is None:
        return {}
    low, high = _ppv(np.array(lr_positive), prevalence).tolist()
    worst, best = _npv(np.array(lr_negative[::-1]), prevalence).tolist()
    return {"ppv_at_prevalence": (low, high), "npv_at_prevalence": (worst, best)}


def _ratio_interval(hits: float, total: float, others: float, other_total: float) -> tuple[float, float]:
    """Return Walter's interval of a ratio of two proportions, with 0.5 added to each count."""
    from scipy.stats import norm

    if not total or not other_total:
        return float("nan"), float("nan")
    one, of_one, two, of_two = hits + 0.5, total + 0.5, others + 0.5, other_total + 0.5
    centre = math.log(one / of_one) - math.log(two / of_two)
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(max(1 / one - 1 / of_one + 1 / two - 1 / of_two, 0.0))
    return math.exp(centre - half), math.exp(centre + half)


def _sum_interval(cells: Floats, one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Return Newcombe's interval of sensitivity + specificity - 1 from the intervals of both."""
    figures = _figures(cells, None)
    first, second = float(figures["sensitivity"]), float(figures["specificity"])
    low = math.hypot(first - one[0], second - other[0])
    high = math.hypot(one[1] - first, other[1] - second)
    return first + second - 1 - low, first + second - 1 + high


def _drawn_intervals(
    plain: Floats, counts: Floats, patients: Floats, prevalence: float | None
) -> dict[str, tuple[float, float]]:
    """Return the percentiles of the figures' draws.

    A proportion without any error has no variation in its draws. It gets Wilson's interval with each patient as one
    observation.
    """
    values, drawn = _figures(plain, prevalence), _figures(counts, prevalence)
    found = {
        name: _ratio_percentiles(draws) if name.startswith("lr_") else percentile_interval(draws)
        for name, draws in drawn.items()
    }
    for name, number in zip(("sensitivity", "specificity", "ppv", "npv"), patients.tolist(), strict=True):
        if (value := float(values[name])) in {0.0, 1.0}:
            found[name] = wilson_interval(value * number, number)
    return found


def _ratio_percentiles(draws: Floats) -> tuple[float, float]:
    """Return the percentiles of ratios that may be infinite in some draws."""
    with np.errstate(invalid="ignore"):
        low, high = percentile_interval(np.where(np.isinf(draws), 1.0, draws / (1 + draws)))
    return tuple(math.inf if end == 1 else end / (1 - end) for end in (low, high))  # type: ignore[return-value]
