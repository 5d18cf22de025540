"""Plot a data report: the number of images per class and split."""

from __future__ import annotations

import numpy as np

from plurum.training.canvas import COLOURS, create_figure, png_from_figure
from plurum.training.data.report import DataReport

__all__ = ["plot_from_data_report"]

_ROW, _FRAME = 0.32, 1.3


def plot_from_data_report(report: DataReport) -> bytes:
    """Return stacked bars, one per class, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = create_figure(7, _FRAME + _ROW * len(report.classes))
    axes = figure.add_subplot()
    ends = np.zeros(len(report.classes))
    for split, colour in zip(report.splits, COLOURS, strict=False):
        images = np.array([report.counts[name][split].images for name in report.classes])
        axes.barh(report.classes, images, left=ends, color=colour, label=split, height=0.7)
        ends += images
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("images")
    axes.set_ylabel("class")
    figure.legend(loc="outside upper center", ncols=len(report.splits), frameon=False)
    return png_from_figure(figure)
