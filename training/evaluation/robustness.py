"""Figures of an ensemble on corrupted images, with a plot and the sentence that sums them up."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from plurum.predictions.arrays import Bools
from plurum.predictions.scores import calibration_error, compute_losses
from plurum.run import number_patients
from plurum.sentences import percent_text
from plurum.settings.training import EvaluationSettings
from plurum.training.canvas import COLOURS, create_figure, tidy_axes
from plurum.training.evaluation.corruptions import CORRUPTIONS, corruption_ways
from plurum.training.evaluation.subject import SplitPredictions
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.decisions import estimate_fractions
from plurum.training.statistics.results import CorruptedFigures, Estimate
from plurum.voting import REVIEW_OUTLIER, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "figures_from_corrupted", "plot_corruptions", "robustness_line"]

# Titles of the figures, in the order of the table.
FIGURES = {
    "wrong_alone": "wrong without review",
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "review": "needs review",
    "caught": "wrong predictions that need review",
    "outliers": "outliers",
}


def figures_from_corrupted(
    evaluated: SplitPredictions, corrupted: Verdict, settings: EvaluationSettings
) -> tuple[CorruptedFigures, ...]:
    """Return the figures on the images as they are, then on those corrupted in each of `corruption_ways`.

    Args:
        evaluated: Predictions for the images as they are.
        corrupted: Verdict on all images corrupted in the first way, then on all corrupted in the second, and so on.
        settings: Options of the evaluation.
    """
    images = len(evaluated.labels)
    bootstrap = Bootstrap(number_patients(evaluated.patients), settings.draws, settings.seed)
    found = [_figures("none", 0, evaluated.verdict, evaluated, bootstrap)]
    for index, (kind, strength) in enumerate(corruption_ways()):
        rows = slice(index * images, (index + 1) * images)
        values = {one.name: getattr(corrupted, one.name)[rows] for one in dataclasses.fields(corrupted)}
        found.append(_figures(kind, strength, dataclasses.replace(corrupted, **values), evaluated, bootstrap))
    return tuple(found)


def _figures(
    kind: str, strength: int, verdict: Verdict, evaluated: SplitPredictions, bootstrap: Bootstrap
) -> CorruptedFigures:
    labels, review = evaluated.labels, verdict.review
    wrong, everything = verdict.label != labels, np.ones(len(labels), dtype=np.bool_)
    outliers = _outliers(verdict)
    accuracy, share, caught, alone, found = estimate_fractions(
        [~wrong, review, review, wrong & ~review, everything if outliers is None else outliers],
        [everything, everything, wrong, everything, everything],
        bootstrap,
    )
    setting = CORRUPTIONS[kind].setting.format(CORRUPTIONS[kind].strengths[strength - 1]) if strength else ""
    return CorruptedFigures(
        kind=kind,
        strength=strength,
        setting=setting,
        accuracy=accuracy,
        nll=float(compute_losses(verdict.probabilities, labels).mean()),
        ece=calibration_error(verdict.probabilities, verdict.label, labels),
        review=share,
        caught=caught,
        outliers=None if outliers is None else found,
        wrong_alone=alone,
    )


def _outliers(verdict: Verdict) -> Bools | None:
    """Return the mask of images that an outlier test finds, `[images]`; None without such a test."""
    # Without a test, every p-value is 1.
    return (verdict.review_reason & REVIEW_OUTLIER) != 0 if (verdict.outlier != 1).any() else None


def robustness_line(figures: tuple[CorruptedFigures, ...]) -> str:
    """Return the sentence on predictions that are wrong and that nobody reviews."""
    worst = max(figures[1:], key=lambda one: one.wrong_alone.value or 0.0)
    return (
        f"Wrong without review: {percent_text(figures[0].wrong_alone)} of the images as they are; of corrupted ones at "
        f"most {percent_text(worst.wrong_alone)}, by {worst.kind} ({worst.setting})."
    )


def plot_corruptions(figures: tuple[CorruptedFigures, ...]) -> Figure:
    """Return a figure with a panel per quantity, and in it a line per kind over the strength.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = [name for name in FIGURES if getattr(figures[0], name) is not None]
    figure = create_figure(13.0, 6.6)
    panels = figure.subplots(2, (len(shown) + 1) // 2).ravel()
    for axes, name in zip(panels, shown, strict=False):
        for colour, kind in zip(COLOURS, CORRUPTIONS, strict=False):
            line = [figures[0], *(one for one in figures if one.kind == kind)]
            values = [_value(getattr(one, name)) for one in line]
            axes.plot([one.strength for one in line], values, "o-", color=colour, markersize=4, label=kind)
        axes.set_xticks(range(4))
        tidy_axes(axes, "strength", FIGURES[name])
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=len(CORRUPTIONS))
    return figure


def _value(figure: Estimate | float | None) -> float:
    value = figure.value if isinstance(figure, Estimate) else figure
    return float("nan") if value is None else value
