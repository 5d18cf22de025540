"""Plot a calibration at a site, as PNG."""

from __future__ import annotations

from plurum.training.calibration.report import CalibrationReport
from plurum.training.canvas import BLUE, GREY, create_figure, draw_interval, name_rows, png_from_figure, tidy_axes
from plurum.training.statistics.metrics import METRICS

__all__ = ["plot_from_calibration"]


def plot_from_calibration(report: CalibrationReport) -> bytes:
    """Return the plot of the changed figures with their intervals, one panel per figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = create_figure(9.5, 2.0)
    panels = figure.subplots(1, len(report.changes), sharey=True)
    for axes, (name, change) in zip(panels, report.changes.items(), strict=True):
        for y, (found, colour) in enumerate(((change.before, GREY), (change.after, BLUE))):
            draw_interval(axes, y, found.value, found.low, found.high, colour)
        tidy_axes(axes, f"{METRICS[name].title}\n{METRICS[name].better} is better", "")
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    name_rows(panels[0], ["before", "after"])
    return png_from_figure(figure)
