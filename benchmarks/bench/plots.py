"""The pictures of a bench, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plurum.benchmarks.bench.result import BenchResult, Breakdown, Case, Target
from plurum.benchmarks.tools.turns import error_bars
from plurum.training.canvas import COLOURS, create_figure, png_from_figure, shorten_name, tidy_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plots_from_result"]

_KINDS = {"concurrency": "requests in flight", "rate": "requests per second, at random moments"}
_PARTS = {
    "queue_ms": ("waiting for an instance", COLOURS[1]),
    "input_ms": ("gathering inputs", COLOURS[4]),
    "infer_ms": ("computing", COLOURS[0]),
}
# Offset of a point's number, in points, by the number of its curve: numbers of neighbours must not overlap.
_BESIDE_POINTS = ((4, -11), (-9, 5), (4, 5), (-9, -11))
_HOP, _OUTSIDE = ("outputs and hops", COLOURS[3]), ("wire and client", COLOURS[7])


def plots_from_result(result: BenchResult) -> dict[str, bytes]:
    """Return the pictures by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return {"latency_throughput": png_from_figure(_curves(result)), "breakdown": png_from_figure(_breakdowns(result))}


def _targets(result: BenchResult) -> list[Target]:
    return list(dict.fromkeys(case.target for case in result.cases()))


def _curves(result: BenchResult) -> Figure:
    """Draw latency over throughput, a curve per target, medians with the lowest and the highest turn."""
    kinds = [kind for kind in _KINDS if any(case.load.kind == kind for case in result.cases())]
    figure = create_figure(1.0 + 6.0 * len(kinds), 4.8)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, target in enumerate(_targets(result)):
            cases = [case for case in result.cases() if case.target == target and case.load.kind == kind]
            _curve(axes, result, cases, place)
        axes.set_title(f"numbers: {_KINDS[kind]}", fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        tidy_axes(axes, "images per second", "latency, ms (solid: median, dashed: 99th percentile)")
        axes.margins(x=0.12)
    # Below: inside, it would hide points.
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _curve(axes: Axes, result: BenchResult, cases: list[Case], place: int) -> None:
    colour, beside = COLOURS[place % len(COLOURS)], _BESIDE_POINTS[place % len(_BESIDE_POINTS)]
    rates = [result.median(case, "images_per_s") for case in cases]
    for field, style in (("p50_ms", "-"), ("p99_ms", "--")):
        values = [result.median(case, field) for case in cases]
        label = f"{shorten_name(cases[0].target.model)}, {_protocol(cases[0].target)}" if style == "-" else None
        axes.errorbar(
            rates,
            values,
            xerr=error_bars(result.values(case, "images_per_s") for case in cases),
            yerr=error_bars(result.values(case, field) for case in cases),
            fmt=f"o{style}",
            color=colour,
            markersize=4,
            linewidth=1.4,
            elinewidth=0.7,
            label=label,
        )
        if style == "-":
            for case, rate, value in zip(cases, rates, values, strict=True):
                axes.annotate(
                    f"{case.load.value:g}", (rate, value), beside, textcoords="offset points", fontsize=8, color=colour
                )


def _breakdowns(result: BenchResult) -> Figure:
    """Draw where the time goes: a row of panels per target, at its lightest and its heaviest load of one kind."""
    rows = []
    for target in _targets(result):
        found = [one for one in result.breakdowns if one.case.target == target]
        found.sort(key=lambda one: (one.case.load.kind, one.case.load.value))
        alike = [one for one in found if one.case.load.kind == found[0].case.load.kind]
        rows.append(alike if len(alike) == 1 else [alike[0], alike[-1]])
    heights = [len(row[0].steps) + 2 for row in rows]
    figure = create_figure(11.0, 1.2 + 0.32 * sum(heights) + 0.6 * len(rows))
    grid = figure.subplots(
        len(rows), len(rows[0]), squeeze=False, sharex="row", sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for panels, pair in zip(grid, rows, strict=True):
        for axes, breakdown in zip(panels, pair, strict=True):
            _panel(axes, breakdown)
    handles = [grid[0][0].barh(0, 0, color=colour, label=label) for label, colour in (*_PARTS.values(), _HOP, _OUTSIDE)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, breakdown: Breakdown) -> None:
    names = [*(shorten_name(step.model) for step in breakdown.steps), _HOP[0], _OUTSIDE[0]]
    for y, step in enumerate(breakdown.steps):
        start = 0.0
        for field, (_, colour) in _PARTS.items():
            axes.barh(y, getattr(step, field), left=start, color=colour, height=0.7)
            start += getattr(step, field)
    last = len(breakdown.steps)
    axes.barh(last, breakdown.hop_ms, color=_HOP[1], height=0.7)
    axes.barh(last + 1, breakdown.outside_ms, color=_OUTSIDE[1], height=0.7)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    case = breakdown.case
    axes.set_title(f"{shorten_name(case.target.model)}, {_protocol(case.target)}, {case.load}", fontsize=9, loc="left")
    tidy_axes(axes, "ms of a request, mean", "")


def _protocol(target: Target) -> str:
    return {"grpc": "gRPC", "http": "HTTP"}[target.protocol]
