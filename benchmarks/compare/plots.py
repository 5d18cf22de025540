"""The pictures of a comparison, as PNG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plurum.benchmarks.compare.comparison import (
    RUNTIMES,
    SHOWN_METRICS,
    ComparedArchitecture,
    Comparison,
    Runtime,
    Spread,
    Vote,
)
from plurum.training.canvas import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    create_figure,
    draw_interval,
    name_rows,
    png_from_figure,
    shorten_name,
    tidy_axes,
)
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["PICTURES", "plots_from_comparison"]

PICTURES = ("accuracy_comparison", "multi_metric_comparison", "accuracy_vs_size", "inference_speed", "pareto_front")
_RUNTIME_COLOURS: dict[Runtime, str] = {"pytorch": GREY, "onnx_fp32": BLUE, "onnx_int8": ORANGE}
# With more architectures than colours, another shape distinguishes them.
_MARKERS = "osD^vP"
_MOST_VOTES = 8


def plots_from_comparison(comparison: Comparison) -> dict[str, bytes]:
    """Return the pictures by the names in `PICTURES`, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawings = (_accuracy, _metrics, _size, _speed, _front)
    return {name: png_from_figure(draw(comparison)) for name, draw in zip(PICTURES, drawings, strict=True)}


def _accuracy(comparison: Comparison) -> Drawing:
    """Draw accuracy with intervals: architectures, then the most accurate votes."""
    votes = sorted(comparison.votes, key=lambda vote: -(vote.accuracy.value or 0.0))[:_MOST_VOTES]
    rows = [(shorten_name(one.name), one.metrics["accuracy"], BLUE) for one in comparison.compared]
    rows += [(_vote_name(vote), vote.accuracy, ORANGE) for vote in votes]
    lines = sum(1 + name.count("\n") for name, *_ in rows)
    figure = create_figure(9.0, 1.5 + 0.36 * max(lines, len(rows)))
    axes = figure.subplots()
    for y, (_, accuracy, colour) in enumerate(rows):
        draw_interval(axes, y, accuracy.value, accuracy.low, accuracy.high, colour)
    axes.plot([], [], "o-", color=BLUE, label="architecture")
    if votes:
        shown = "ensemble" if len(votes) == len(comparison.votes) else f"ensemble (the best {len(votes)})"
        axes.plot([], [], "o-", color=ORANGE, label=shown)
    tidy_axes(axes, f"accuracy on {comparison.images['test']:,} test images (lines: 95% intervals)", "")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _metrics(comparison: Comparison) -> Drawing:
    """Draw all metrics of all architectures, one panel each, as their ranges differ."""
    drawing = create_figure(12.5, 1.7 + 0.42 * len(comparison.compared))
    panels = drawing.subplots(1, len(SHOWN_METRICS), sharey=True)
    for axes, metric in zip(panels, SHOWN_METRICS, strict=True):
        for y, one in enumerate(comparison.compared):
            figure = one.metrics[metric]
            draw_interval(axes, y, figure.value, figure.low, figure.high, _colour(y))
        tidy_axes(axes, METRICS[metric].title, "")
        axes.locator_params(axis="x", nbins=3)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
    name_rows(panels[0], [one.name for one in comparison.compared])
    drawing.supxlabel("on test images, mean over classes; lines: 95% intervals", fontsize=9)
    return drawing


def _size(comparison: Comparison) -> Drawing:
    """Draw accuracy over size on disk, in FP32 and in INT8."""
    figure = create_figure(9.0, 4.8)
    axes = figure.subplots()
    for one, runtime, style in _graphs(comparison):
        _cross(axes, one.costs.size_mb[runtime], one.accuracy[runtime], style)
    _finish_graphs(axes, figure)
    tidy_axes(axes, "size on disk (MB, logarithmic)", "accuracy on test images\n(lines: 95% intervals)")
    return figure


def _speed(comparison: Comparison) -> Drawing:
    """Draw latency and throughput by architecture and runtime."""
    figure = create_figure(11.5, 1.6 + 0.66 * len(comparison.compared))
    latency, throughput = figure.subplots(1, 2, sharey=True)
    for place, runtime in enumerate(RUNTIMES):
        for row, one in enumerate(comparison.compared):
            y, colour = row + (place - 1) * 0.27, _RUNTIME_COLOURS[runtime]
            _bar(latency, y, one.speed[runtime].latency_ms, colour)
            _bar(throughput, y, one.speed[runtime].images_per_s, colour)
        latency.plot([], [], "s", markersize=9, color=_RUNTIME_COLOURS[runtime], label=RUNTIMES[runtime])
    tidy_axes(latency, "latency: ms per image, one thread\nshorter is better", "")
    size, cores = comparison.batch_size, comparison.machine["cores"]
    tidy_axes(
        throughput, f"throughput: images/s, batches of {size}, one on each of {cores} cores\nlonger is better", ""
    )
    for axes in (latency, throughput):
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
    name_rows(latency, [one.name for one in comparison.compared])
    figure.legend(
        loc="outside upper center", ncols=3, frameon=False, title=f"medians of {comparison.turns} turns, with extremes"
    )
    return figure


def _front(comparison: Comparison) -> Drawing:
    """Draw accuracy over latency: members, votes, and the Pareto front."""
    figure = create_figure(9.5, 5.0)
    axes = figure.subplots()
    for one, runtime, style in _graphs(comparison):
        if (accuracy := one.accuracy[runtime].value) is not None:
            axes.plot(one.speed[runtime].latency_ms.median, accuracy, **style)
    votes = [(vote.latency_ms, vote.accuracy.value or 0.0) for vote in comparison.votes]
    if votes:
        axes.plot(*zip(*votes, strict=True), "x", color="#1b1b1b", markersize=6, label="ensembles, ONNX FP32")
    steps = [(point.latency_ms, point.accuracy) for point in comparison.front]
    axes.step(*zip(*steps, strict=True), where="post", color=GREY, zorder=1, label="Pareto front")
    _finish_graphs(axes, figure)
    latency = "latency of one image, one thread; of ensembles: added up (ms, logarithmic)"
    tidy_axes(axes, latency, "accuracy on test images")
    return figure


def _graphs(comparison: Comparison) -> Iterator[tuple[ComparedArchitecture, Runtime, dict[str, Any]]]:
    """Give every architecture in FP32 and in INT8, with the style and the label of its points."""
    runtimes: tuple[Runtime, ...] = ("onnx_fp32", "onnx_int8")
    for index, one in enumerate(comparison.compared):
        for runtime in runtimes:
            label = shorten_name(one.name) if runtime == "onnx_fp32" else None
            yield one, runtime, _style(index, hollow=runtime == "onnx_int8") | {"label": label}


def _finish_graphs(axes: Axes, figure: Drawing) -> None:
    """Add the legend, with filled and hollow points, and make the lower axis logarithmic."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.plot([], [], "o", color=GREY, label="filled: ONNX FP32")
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="hollow: ONNX INT8")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    # Plain numbers at a few places of each decade.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside right upper", frameon=False)


def _cross(axes: Axes, x: float, figure: Estimate, style: dict[str, Any]) -> None:
    if figure.value is None:
        return
    if figure.low is not None and figure.high is not None:
        axes.plot([x, x], [figure.low, figure.high], color=style["color"], linewidth=1.2, alpha=0.5)
    axes.plot(x, figure.value, **style)


def _bar(axes: Axes, y: float, spread: Spread, colour: str) -> None:
    axes.barh(y, spread.median, color=colour, height=0.24)
    axes.plot([spread.lowest, spread.highest], [y, y], color="#1b1b1b", linewidth=1)
    text = f"{spread.median:,.3g}" if spread.median < 1000 else f"{spread.median:,.0f}"
    axes.annotate(
        text, (max(spread.highest, spread.median), y), (4, 0), textcoords="offset points", va="center", fontsize=8
    )


def _style(index: int, *, hollow: bool) -> dict[str, Any]:
    colour, marker = _colour(index), _MARKERS[index // len(COLOURS) % len(_MARKERS)]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 9,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgewidth": 1.6,
        "linestyle": "none",
    }


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _vote_name(vote: Vote) -> str:
    """Return the members one below the other if one line would leave no room for the plot."""
    if len(vote.name) <= 40:
        return vote.name.replace("$", r"\$")
    first, *others = vote.members
    return (
        shorten_name(first) + f" + {len(others)} more"
        if len(others) > 2
        else "\n+ ".join(map(shorten_name, vote.members))
    )
