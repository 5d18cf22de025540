"""The picture of a comparison, as PNG."""

from __future__ import annotations

import statistics

from plurum.benchmarks.peers.result import PeersResult
from plurum.benchmarks.tools.turns import error_bars
from plurum.training.canvas import BLUE, GREY, create_figure, png_from_figure, tidy_axes

__all__ = ["plot_from_result"]

# Bars longer than this times the median are cut off.
_FAR = 3.0


def plot_from_result(result: PeersResult) -> bytes:
    """Return a PNG of throughput and 99th percentile with the most clients, and of the median with the fewest.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    most, fewest = result.clients[0], result.clients[-1]
    order = sorted(result.contenders, key=lambda one: result.rate(one.name, most))
    figure = create_figure(12.5, 1.6 + 0.36 * len(order))
    panels = figure.subplots(1, 3, sharey=True)
    middles = [result.rate(one.name, most) for one in order]
    beside = error_bars(result.rates(one.name, most) for one in order)
    columns = (
        (middles, beside, f"images per second, {most} in flight", "{:.1f}"),
        (
            [result.latency_ms(one.name, most, 99) for one in order],
            None,
            f"99th percentile, ms, {most} in flight",
            "{:.0f}",
        ),
        ([result.latency_ms(one.name, fewest, 50) for one in order], None, f"median, ms, {fewest} in flight", "{:.0f}"),
    )
    for axes, (values, errors, label, form) in zip(panels, columns, strict=True):
        # A very long bar would make all others look alike.
        longest = _FAR * statistics.median(values)
        shown = [min(value, longest) for value in values]
        axes.barh(range(len(order)), shown, color=[BLUE if one.ours else GREY for one in order], height=0.7)
        if errors is not None:
            axes.errorbar(values, range(len(order)), xerr=errors, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
        edges = shown if errors is None else [value + more for value, more in zip(values, errors[1], strict=True)]
        for y, (edge, value) in enumerate(zip(edges, values, strict=True)):
            text = form.format(value) + (" (cut off)" if value > longest else "")
            axes.annotate(text, (edge, y), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        tidy_axes(axes, label, "")
    panels[0].set_yticks(range(len(order)), [one.title for one in order])
    panels[0].set_title("lines: lowest to highest turn", fontsize=8, loc="left")
    return png_from_figure(figure)
