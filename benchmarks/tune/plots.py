"""The picture of a tuning, as PNG."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from plurum.benchmarks.tune.result import Side, TuneResult, TuneTrial
from plurum.training.canvas import COLOURS, GREY, create_figure, png_from_figure, tidy_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_from_result"]

_WIDEST = 76
_SIDES: dict[Side, str] = {"before": "the repository as it was", "after": "the best found"}
# Area of the dots of the shortest and the longest turns, in points².
_SMALLEST, _LARGEST = 18, 110


def plot_from_result(result: TuneResult) -> bytes:
    """Return a PNG of every turn of every variant by stage, and of both sides of the final comparison.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = _rows(result)
    names = [*(textwrap.fill(name, _WIDEST) for _, name, _ in rows), *(f"{one}: {_SIDES[one]}" for one in _SIDES)]
    most_lines = max(name.count("\n") for name in names) + 1
    figure = create_figure(10.5, 1.3 + (0.13 + 0.14 * most_lines) * len(names))
    axes = figure.subplots()
    longest = max((trial.seconds for trial in result.trials), default=1.0)
    stages = list(dict.fromkeys(stage for stage, _, _ in rows))
    for y, (stage, _, trials) in enumerate(rows):
        colour = COLOURS[stages.index(stage) % len(COLOURS)]
        for trial in (one for one in trials if not one.error):
            size = _SMALLEST + (_LARGEST - _SMALLEST) * trial.seconds / longest
            axes.scatter(trial.ratio(result.objective), y, size, color=colour, alpha=0.55, linewidths=0)
        if all(one.error for one in trials):
            axes.text(0, y, " discarded", color=GREY, fontsize=8, va="center")
    _sides(axes, result, len(rows))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(rows) + len(_SIDES) - 0.4, -0.6)
    axes.set_xlim(left=0)
    tidy_axes(axes, "images per second over those of the repository as it was; larger dots are longer turns", "")

    handles = [axes.scatter([], [], 50, color=COLOURS[index], label=stage) for index, stage in enumerate(stages)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return png_from_figure(figure)


def _rows(result: TuneResult) -> list[tuple[str, str, list[TuneTrial]]]:
    """Return stage, variant and its turns; within a stage, variants with more turns come first."""
    found: dict[tuple[str, str], list[TuneTrial]] = {}
    for trial in result.trials:
        found.setdefault((trial.stage, str(trial.variant)), []).append(trial)
    order = list(dict.fromkeys(stage for stage, _ in found))
    rows = [(stage, name, trials) for (stage, name), trials in found.items()]
    return sorted(rows, key=lambda row: (order.index(row[0]), -len(row[2]), row[1]))


def _sides(axes: Axes, result: TuneResult, first: int) -> None:
    """Draw the turns of the final comparison, and their medians."""
    reference = result.objective.best(result.medians("before")).images_per_s
    for y, side in enumerate(_SIDES, start=first):
        rates = [
            result.objective.best(one.points).images_per_s / reference for one in result.finals if one.side == side
        ]
        axes.scatter(rates, [y] * len(rates), 40, color="#1b1b1b", alpha=0.45, linewidths=0)
        median = result.objective.best(result.medians(side)).images_per_s / reference
        axes.plot([median] * 2, [y - 0.35, y + 0.35], color="#1b1b1b")
    axes.axvline(1, color=GREY, linewidth=0.8, zorder=0)
    axes.axhline(first - 0.5, color=GREY, linewidth=0.8)
