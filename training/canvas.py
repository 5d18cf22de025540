"""What all pictures share: figures that need no display, colours that most people can tell apart, PNG bytes.

Figures are made as objects, without pyplot: nothing global is touched.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from plurum.errors import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "COLOURS", "GREY", "ORANGE", "RED", "figure_of", "png_from_figure", "shortened", "tidied"]

_DPI = 110
BLUE, ORANGE, GREY, RED = "#0067a5", "#d55e00", "#8a8f98", "#b3261e"
# Okabe & Ito's, which most people with other colour vision can tell apart, then more.
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8c6bb1",
    "#7f7f7f",
    "#b8860b",
    "#1b1b1b",
)


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("training"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def tidied(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Label the axes, and leave of frame and grid what helps to read them."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_from_figure(figure: Figure) -> bytes:
    """Return the figure as a PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # No software version inside.
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def shortened(name: str) -> str:
    """Return a name that leaves room for the plot, and in which matplotlib finds no formula."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")
