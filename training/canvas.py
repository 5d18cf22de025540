"""Shared parts of all plots: figures that need no display, colours for colour-blind readers, PNG bytes.

Figures are created without pyplot, so no global state changes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from plurum.errors import needs_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "GREY",
    "ORANGE",
    "RED",
    "create_figure",
    "draw_interval",
    "name_rows",
    "png_from_figure",
    "shorten_name",
    "tidy_axes",
]

_DPI = 110
BLUE, ORANGE, GREY, RED = "#0067a5", "#d55e00", "#8a8f98", "#b3261e"
# Okabe and Ito's palette, which most colour-blind readers can tell apart, then more colours.
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
    *("#8c6bb1", "#7f7f7f", "#b8860b", "#1b1b1b"),
)


def create_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this width and height, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("training"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def tidy_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Label the axes, draw a light grid, and hide the top and right frame lines."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_interval(
    axes: Axes, y: float, value: float | None, low: float | None, high: float | None, colour: str
) -> None:
    """Draw a value as a dot at the height `y`, and its interval as a line; None draws nothing."""
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
    if value is not None:
        axes.plot(value, y, "o", color=colour, markersize=6)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a plot, the first on top."""
    axes.set_yticks(range(len(names)), [shorten_name(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def png_from_figure(figure: Figure) -> bytes:
    """Return the figure as a PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # Without matplotlib's version in the metadata, so that the bytes depend on the figure alone.
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def shorten_name(name: str) -> str:
    """Return a name of at most 24 characters in which matplotlib finds no formula."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")
