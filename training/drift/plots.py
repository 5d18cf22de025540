"""Plot a test for drift, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plurum.figures import Drift
from plurum.training.canvas import BLUE, GREY, ORANGE, RED, create_figure, name_rows, png_from_figure, tidy_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_from_drift"]

# More rows don't fit; those that changed most are shown.
_MOST_ROWS = 20


def plot_from_drift(drift: Drift) -> bytes:
    """Return the fractions of labels and of confidence in both samples, and the distance of each output.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = min(_MOST_ROWS, max(len(drift.classes), len(drift.shifts)))
    figure = create_figure(12.5, max(3.6, 1.4 + 0.32 * rows))
    labels, confidence, distances = figure.subplots(1, 3)
    _draw_labels(labels, drift)
    _draw_confidence(confidence, drift)
    _draw_distances(distances, drift)
    handles, names = labels.get_legend_handles_labels()
    more = distances.get_legend_handles_labels()
    figure.legend([*handles, *more[0]], [*names, *more[1]], loc="outside upper left", frameon=False, ncols=4)
    return png_from_figure(figure)


def _draw_labels(axes: Axes, drift: Drift) -> None:
    changes = np.abs(np.array(drift.answers_labels) - np.array(drift.reference_labels))
    shown = np.sort(np.argsort(-changes, kind="stable")[:_MOST_ROWS])
    at = np.arange(len(shown))
    axes.barh(at - 0.2, np.array(drift.reference_labels)[shown], 0.4, color=GREY, label="reference")
    axes.barh(at + 0.2, np.array(drift.answers_labels)[shown], 0.4, color=BLUE, label="predictions")
    tidy_axes(axes, "fraction of the predictions", "")
    name_rows(axes, [drift.classes[index] for index in shown])


def _draw_confidence(axes: Axes, drift: Drift) -> None:
    at = np.arange(len(drift.reference_confidence))
    axes.bar(at - 0.2, drift.reference_confidence, 0.4, color=GREY)
    axes.bar(at + 0.2, drift.answers_confidence, 0.4, color=BLUE)
    limits = [*(f"≤ {limit:g}" for limit in drift.confidence_limits), "≤ 1"]
    axes.set_xticks(at, limits, rotation=90)
    tidy_axes(axes, "confidence", "fraction of the predictions")


def _draw_distances(axes: Axes, drift: Drift) -> None:
    found = sorted(drift.shifts, key=lambda shift: (shift.p_value, -shift.distance))[:_MOST_ROWS]
    for is_found, colour, name in ((True, RED, f"p ≤ {drift.alpha:g}"), (False, ORANGE, f"p > {drift.alpha:g}")):
        rows = [row for row, shift in enumerate(found) if (shift.p_value <= drift.alpha) == is_found]
        if rows:
            axes.plot([found[row].distance for row in rows], rows, "o", color=colour, markersize=7, label=name)
    tidy_axes(axes, "distance, 0 to 1", "")
    axes.set_xlim(left=0)
    name_rows(axes, [shift.output for shift in found])
