"""The picture of a growth measurement, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import NullFormatter

from plurum.benchmarks.claims.growth.result import Axis, GrowthResult
from plurum.benchmarks.tools.turns import error_bars
from plurum.training.canvas import BLUE, COLOURS, create_figure, png_from_figure, tidy_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_from_growth"]

_TITLES = {"members": "members", "classes": "classes", "size": "image size, pixels a side", "clients": "clients"}
_PARTS = {"decoding": COLOURS[1], "members": COLOURS[0], "voter": COLOURS[3]}


def plot_from_growth(result: GrowthResult) -> bytes:
    """Return a PNG with a column per axis: images per second, latency, and computing time per image by part."""
    axes = result.axes()
    figure = create_figure(1.2 + 3.3 * len(axes), 8.2)
    rows = figure.subplots(3, len(axes), squeeze=False)
    for number, axis in enumerate(axes):
        values = result.values(axis)
        rates = [result.rate(axis, value) for value in values]
        beside = error_bars([turn.images_per_s for turn in result.turns_of(axis, value)] for value in values)
        rate_axes, time_axes, part_axes = (row[number] for row in rows)
        rate_axes.errorbar(values, rates, yerr=beside, fmt="o-", color=BLUE, markersize=4, elinewidth=0.9, capsize=2)
        time_axes.plot(values, [result.p50_ms(axis, value) for value in values], "o-", color=BLUE, markersize=4)
        _bars(part_axes, result, axis)
        first = number == 0
        tidy_axes(rate_axes, "", "images per second" if first else "")
        tidy_axes(time_axes, "", "median latency, ms" if first else "")
        tidy_axes(part_axes, _TITLES[axis], "computing time per image, ms" if first else "")
        for one in (rate_axes, time_axes):
            one.set_ylim(0, 1.1 * one.dataLim.y1)
            if axis != "members":
                one.set_xscale("log", base=2 if axis != "classes" else 10)
            one.set_xticks(values, [str(value) for value in values])
            one.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        handles=rows[2][0].containers, labels=list(_PARTS), loc="outside lower center", ncols=3, frameon=False
    )
    return png_from_figure(figure)


def _bars(axes: Axes, result: GrowthResult, axis: Axis) -> None:
    """Draw stacked bars of computing time by part, and above each bar the voter's fraction."""
    values = result.values(axis)
    below = [0.0] * len(values)
    for part, colour in _PARTS.items():
        heights = [result.busy_ms(axis, value, part) for value in values]
        axes.bar(range(len(values)), heights, bottom=below, color=colour, width=0.7)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, (height, top) in enumerate(zip(heights, below, strict=True)):
        axes.annotate(f"{height / top:.0%}", (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.margins(y=0.12)
    axes.set_title("above: the voter's fraction", fontsize=8, loc="left")
