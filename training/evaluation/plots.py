"""The pictures of a judgement, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plurum.training.canvas import BLUE, COLOURS, GREY, ORANGE, RED, figure_of, png_from_figure, shortened, tidied
from plurum.training.statistics.judgement import Judged, Judgement
from plurum.training.statistics.metrics import BINS, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plots_from_judgement"]

# More classes than this in one plot are a tangle: then those with the smallest areas are shown.
_MOST_CURVES = len(COLOURS)
_MOST_NAMES = 30
_COMPARED = ("accuracy", "balanced_accuracy", "nll", "ece")


def plots_from_judgement(judgement: Judgement) -> dict[str, bytes]:
    """Return the pictures by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = {
        "comparison": _comparison(judgement),
        "confusion": _confusion(judgement),
        "roc": _roc(judgement),
        "precision_recall": _precision_recall(judgement),
        "reliability": _reliability(judgement),
        "risk_coverage": _risk_coverage(judgement),
        "prediction_sets": _prediction_sets(judgement),
    }
    if judgement.diversity:
        figures["diversity"] = _diversity(judgement)
    return {name: png_from_figure(figure) for name, figure in figures.items()}


def _colour(judged: Judged) -> str:
    return {"ensemble": BLUE, "best": ORANGE, "member": GREY}[judged.kind]


def _comparison(judgement: Judgement) -> Figure:
    """Everyone's value and interval, one panel per metric."""
    rows = judgement.judged
    figure = figure_of(10.5, 1.3 + 0.32 * len(rows))
    panels = figure.subplots(1, len(_COMPARED), sharey=True)
    for axes, name in zip(panels, _COMPARED, strict=True):
        for y, judged in enumerate(rows):
            value = judged.metrics[name]
            if value.value is None or value.low is None or value.high is None:
                continue
            axes.plot([value.low, value.high], [y, y], color=_colour(judged), linewidth=2.5, solid_capstyle="round")
            axes.plot(value.value, y, "o", color=_colour(judged), markersize=6)
        metric = METRICS[name]
        tidied(axes, f"{metric.title}\n{metric.better} is better", "")
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [shortened(judged.name) for judged in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _confusion(judgement: Judgement) -> Figure:
    """Counts, coloured by the share of each true class."""
    counts = np.array(judgement.confusion)
    number = len(counts)
    side = min(9.0, 3.0 + 0.45 * number)
    figure = figure_of(side + 0.9, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if number > _MOST_NAMES:
        return figure
    names = [shortened(name) for name in judgement.classes]
    slanted = max(map(len, names)) > 4
    axes.set_xticks(range(number), names, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(number), names)
    size = 10 if number <= 10 else 7
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "#1f2933"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
    return figure


def _roc(judgement: Judgement) -> Figure:
    figure = figure_of(6.6, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, name in zip(COLOURS, _shown(judgement, "roc_auc"), strict=False):
        if curve := judgement.curves[name].roc:
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=_labelled(judgement, name, "roc_auc"))
    tidied(axes, "false-positive rate (1 - specificity)", "true-positive rate (sensitivity)")
    _legend_beside(figure, axes, "class: area (worst first)")
    return figure


def _precision_recall(judgement: Judgement) -> Figure:
    figure = figure_of(6.6, 4.6)
    axes = figure.subplots()
    for colour, name in zip(COLOURS, _shown(judgement, "average_precision"), strict=False):
        if curve := judgement.curves[name].precision_recall:
            label = _labelled(judgement, name, "average_precision")
            axes.step(curve.x, curve.y, where="pre", color=colour, linewidth=1.6, label=label)
    tidied(axes, "recall (sensitivity)", "precision")
    axes.set_ylim(-0.02, 1.02)
    _legend_beside(figure, axes, "class: average precision\n(worst first)")
    return figure


def _reliability(judgement: Judgement) -> Figure:
    """Accuracy over confidence, and below it how many answers there are of each."""
    figure = figure_of(5.4, 5.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="as sure as right")
    filled = [found for found in judgement.reliability if found.accuracy is not None]
    centres = [(found.low + found.high) / 2 for found in filled]
    right = np.array([found.accuracy for found in filled], dtype=np.float64)
    sure = np.array([found.confidence for found in filled], dtype=np.float64)
    width = 0.92 / BINS
    axes.bar(centres, right, width, color=BLUE, label="accuracy")
    axes.bar(
        centres,
        sure - right,
        width,
        bottom=right,
        color="none",
        edgecolor=RED,
        hatch="////",
        linewidth=0.8,
        label="gap to mean confidence",
    )
    ece = judgement.ensemble.metrics["ece"].value
    tidied(axes, "", "accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    title = "ECE does not exist" if ece is None else f"ECE {ece:.4f}"
    figure.legend(loc="outside upper left", frameon=False, title=title, alignment="left", ncols=3)
    below.bar(
        [(found.low + found.high) / 2 for found in judgement.reliability],
        [found.images for found in judgement.reliability],
        width,
        color=GREY,
    )
    tidied(below, "confidence (probability of the winner)", "answers")
    return figure


def _risk_coverage(judgement: Judgement) -> Figure:
    figure = figure_of(7.4, 4.4)
    axes = figure.subplots()
    for judged in reversed(judgement.judged):
        curve = judgement.risk_coverage[judged.name]
        aurc = judged.metrics["aurc"].value
        is_member = judged.kind == "member"
        axes.plot(
            curve.x,
            curve.y,
            color=_colour(judged),
            linewidth=1 if is_member else 2,
            linestyle=(0, (4, 2)) if is_member else "-",
            label=f"{shortened(judged.name)}: AURC {aurc:.4f}",
        )
    review, kept = judgement.review, judgement.review.accuracy_kept.value
    if review.share.value is not None and kept is not None:
        axes.plot(1 - review.share.value, 1 - kept, "D", color=RED, markersize=8, label="without those for review")
    if review.wished_risk is not None:
        axes.axhline(review.wished_risk, color=RED, linewidth=1, linestyle=":", label="risk wished for")
    tidied(axes, "coverage (share of images answered, surest first)", "risk (share of wrong answers)")
    axes.set_xlim(0, 1.02)
    # Among the very few surest a single mistake is a great risk, and says little.
    settled = [
        y for curve in judgement.risk_coverage.values() for x, y in zip(curve.x, curve.y, strict=True) if x > 0.05
    ]
    axes.set_ylim(0, 1.1 * max(*settled, review.wished_risk or 0.0, 0.01))
    handles, labels = axes.get_legend_handles_labels()
    drawn = len(judgement.judged)
    handles[:drawn], labels[:drawn] = handles[:drawn][::-1], labels[:drawn][::-1]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _prediction_sets(judgement: Judgement) -> Figure:
    """Coverage of each class, with its interval, and how large sets are."""
    names = judgement.classes[:_MOST_NAMES]
    figure = figure_of(9.5, max(3.4, 1.2 + 0.3 * len(names)))
    axes, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    for y, name in enumerate(names):
        coverage = judgement.sets.by_class[name].coverage
        if coverage.value is None or coverage.low is None or coverage.high is None:
            continue
        axes.plot([coverage.low, coverage.high], [y, y], color=BLUE, linewidth=2.5, solid_capstyle="round")
        axes.plot(coverage.value, y, "o", color=BLUE, markersize=6)
    if judgement.sets.wished is not None:
        label = f"wished for: {judgement.sets.wished:.0%}"
        axes.axvline(judgement.sets.wished, color=RED, linestyle=":", linewidth=1.4, label=label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    tidied(axes, "coverage (share of images whose set holds their class)", "")
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    counts = judgement.sets.sizes
    largest = max((size for size, count in enumerate(counts, start=1) if count), default=1)
    shown = max(largest, min(3, len(counts)))
    bars = sizes.bar(range(1, shown + 1), counts[:shown], 0.8, color=BLUE)
    if shown <= 12:
        sizes.bar_label(bars, fontsize=9)
        sizes.set_xticks(range(1, shown + 1))
    tidied(sizes, "classes in the set", "images")
    return figure


def _diversity(judgement: Judgement) -> Figure:
    """Pairwise disagreement and Q, as two matrices."""
    diversity = judgement.diversity
    if diversity is None:
        raise ValueError("a single member has no pairs")
    names = [judged.name for judged in judgement.judged if judged.kind == "member"]
    number = len(names)
    tables = {"disagreement": np.full((number, number), np.nan), "Q statistic": np.full((number, number), np.nan)}
    for pair in diversity.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        tables["disagreement"][[i, j], [j, i]] = pair.disagreement
        if pair.q is not None:
            tables["Q statistic"][[i, j], [j, i]] = pair.q
    side = 2.4 + 0.5 * number
    figure = figure_of(2 * side + 1.5, side)
    for axes, (title, table) in zip(figure.subplots(1, 2, sharey=True), tables.items(), strict=True):
        is_q = title != "disagreement"
        top = 1.0 if is_q else max(float(np.nanmax(table)), 1e-9)
        # Q is best near 0, disagreement has no best: the darker, the more alike or the more different.
        image = axes.imshow(table, cmap="PuOr" if is_q else "Blues", vmin=-1.0 if is_q else 0.0, vmax=top)
        figure.colorbar(image, ax=axes, fraction=0.046)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(number), [shortened(name) for name in names], rotation=45, ha="right")
        axes.set_yticks(range(number), [shortened(name) for name in names])
        for i, j in zip(*np.nonzero(~np.isnan(table)), strict=True):
            share = abs(table[i, j]) / top
            colour = "white" if share > 0.6 else "#1f2933"
            axes.text(j, i, f"{table[i, j]:.3f}", ha="center", va="center", fontsize=9, color=colour)
    return figure


def _shown(judgement: Judgement, metric: str) -> list[str]:
    """Return the classes that get a curve, the worst by `metric` first; those without a value come last."""
    values = {name: judgement.ensemble.per_class[name][metric].value for name in judgement.classes}
    ranked = sorted(values, key=lambda name: (values[name] is None, values[name] or 0.0))
    return ranked[:_MOST_CURVES]


def _labelled(judgement: Judgement, name: str, metric: str) -> str:
    value = judgement.ensemble.per_class[name][metric].value
    return f"{shortened(name)}: {value:.4f}"


def _legend_beside(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, title=title, alignment="left")
