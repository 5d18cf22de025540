"""The picture of a data report: how many images each class has in each split."""

from __future__ import annotations

import io

import numpy as np

from plurum.errors import needs_extra
from plurum.run import Split
from plurum.training.data_report import DataReport

__all__ = ["plot_from_data_report"]

_DPI = 110
# Okabe & Ito's, which most people with other colour vision can tell apart.
_COLOURS: dict[Split, str] = {"train": "#0072b2", "validation": "#e69f00", "test": "#009e73"}
_ROW, _FRAME = 0.32, 1.3


def plot_from_data_report(report: DataReport) -> bytes:
    """Return stacked bars, one per class, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("training"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, _FRAME + _ROW * len(report.classes)), layout="constrained")
    axes = figure.add_subplot()
    ends = np.zeros(len(report.classes))
    for split, colour in _COLOURS.items():
        images = np.array([report.counts[name][split].images for name in report.classes])
        axes.barh(report.classes, images, left=ends, color=colour, label=split, height=0.7)
        ends += images
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("images")
    axes.set_ylabel("class")
    figure.legend(loc="outside upper center", ncols=len(_COLOURS), frameon=False)
    file = io.BytesIO()
    # No software version inside: the same report gives the same bytes.
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()
