"""Plot an evaluation, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plurum.predictions.scores import BINS
from plurum.training.canvas import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    RED,
    create_figure,
    draw_interval,
    name_rows,
    png_from_figure,
    shorten_name,
    tidy_axes,
)
from plurum.training.drift.plots import plot_from_drift
from plurum.training.evaluation.robustness import plot_corruptions
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import EvaluatedModel, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plots_from_evaluation"]

# Largest number of classes in one plot; with more, the classes with the smallest areas are shown.
_MOST_CURVES = len(COLOURS)
_MOST_NAMES = 30
_COMPARED = ("accuracy", "balanced_accuracy", "nll", "ece")


def plots_from_evaluation(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the plots by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = {
        "comparison": _plot_comparison(evaluation),
        "confusion": _plot_confusion(evaluation),
        "roc": _plot_roc(evaluation),
        "precision_recall": _plot_precision_recall(evaluation),
        "reliability": _plot_reliability(evaluation),
        "risk_coverage": _plot_risk_coverage(evaluation),
        "prediction_sets": _plot_prediction_sets(evaluation),
    }
    if any(diagnosis.decision_curve for diagnosis in evaluation.diagnoses):
        figures["decision_curve"] = _plot_decision_curves(evaluation)
    if evaluation.diversity:
        figures["diversity"] = _plot_diversity(evaluation)
    if evaluation.corruptions:
        figures["corruptions"] = plot_corruptions(evaluation.corruptions)
    drift = {"drift": plot_from_drift(evaluation.drift)} if evaluation.drift else {}
    return {name: png_from_figure(figure) for name, figure in figures.items()} | drift


def _colour(judged: EvaluatedModel) -> str:
    return {"ensemble": BLUE, "best": ORANGE, "member": GREY}[judged.kind]


def _plot_comparison(evaluation: Evaluation) -> Figure:
    """Plot values and intervals of all models, one panel per metric."""
    rows = evaluation.judged
    figure = create_figure(10.5, 1.3 + 0.32 * len(rows))
    panels = figure.subplots(1, len(_COMPARED), sharey=True)
    for axes, name in zip(panels, _COMPARED, strict=True):
        for y, judged in enumerate(rows):
            found = judged.metrics[name]
            draw_interval(axes, y, found.value, found.low, found.high, _colour(judged))
        metric = METRICS[name]
        tidy_axes(axes, f"{metric.title}\n{metric.better} is better", "")
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    name_rows(panels[0], [judged.name for judged in rows])
    return figure


def _plot_confusion(evaluation: Evaluation) -> Figure:
    """Plot confusion counts, coloured by the fraction of each true class."""
    counts = np.array(evaluation.confusion)
    number = len(counts)
    side = min(9.0, 3.0 + 0.45 * number)
    figure = create_figure(side + 0.9, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="fraction of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if number > _MOST_NAMES:
        return figure
    names = [shorten_name(name) for name in evaluation.classes]
    slanted = max(map(len, names)) > 4
    axes.set_xticks(range(number), names, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(number), names)
    size = 10 if number <= 10 else 7
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "#1f2933"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
    return figure


def _plot_roc(evaluation: Evaluation) -> Figure:
    figure = create_figure(6.6, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, name in zip(COLOURS, _shown_classes(evaluation, "roc_auc"), strict=False):
        if curve := evaluation.curves[name].roc:
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=_curve_label(evaluation, name, "roc_auc"))
    tidy_axes(axes, "false-positive rate (1 - specificity)", "true-positive rate (sensitivity)")
    _legend_beside(figure, axes, "class: area (worst first)")
    return figure


def _plot_precision_recall(evaluation: Evaluation) -> Figure:
    figure = create_figure(6.6, 4.6)
    axes = figure.subplots()
    for colour, name in zip(COLOURS, _shown_classes(evaluation, "average_precision"), strict=False):
        if curve := evaluation.curves[name].precision_recall:
            label = _curve_label(evaluation, name, "average_precision")
            axes.step(curve.x, curve.y, where="pre", color=colour, linewidth=1.6, label=label)
    tidy_axes(axes, "recall (sensitivity)", "precision")
    axes.set_ylim(-0.02, 1.02)
    _legend_beside(figure, axes, "class: average precision\n(worst first)")
    return figure


def _plot_decision_curves(evaluation: Evaluation) -> Figure:
    """Plot net benefit over threshold probability, one panel per class."""
    found = [(one.positive, one.decision_curve) for one in evaluation.diagnoses if one.decision_curve]
    figure = create_figure(1.2 + 5.2 * len(found), 4.2)
    for axes, (name, curve) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        axes.fill_between(curve.thresholds, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(curve.thresholds, curve.net_benefit, color=BLUE, linewidth=2, label="ensemble")
        axes.plot(curve.thresholds, curve.treat_all, color=ORANGE, linewidth=1.4, label="deciding all")
        axes.axhline(0, color=GREY, linewidth=1.4, linestyle="--", label="deciding none")
        axes.set_ylim(-0.15 * curve.prevalence, 1.1 * curve.prevalence)
        axes.set_xlim(0, 1)
        tidy_axes(axes, f"threshold probability of {shorten_name(name)}", "net benefit")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=3)
    return figure


def _plot_reliability(evaluation: Evaluation) -> Figure:
    """Plot accuracy over confidence, and below it the number of predictions per bin."""
    figure = create_figure(5.4, 5.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="confidence = accuracy")
    filled = [found for found in evaluation.reliability if found.accuracy is not None]
    centres = [(found.low + found.high) / 2 for found in filled]
    accuracy = np.array([found.accuracy for found in filled], dtype=np.float64)
    confidence = np.array([found.confidence for found in filled], dtype=np.float64)
    width = 0.92 / BINS
    axes.bar(centres, accuracy, width, color=BLUE, label="accuracy")
    axes.bar(
        centres,
        confidence - accuracy,
        width,
        bottom=accuracy,
        color="none",
        edgecolor=RED,
        hatch="////",
        linewidth=0.8,
        label="gap to mean confidence",
    )
    ece = evaluation.ensemble.metrics["ece"].value
    tidy_axes(axes, "", "accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    title = "ECE does not exist" if ece is None else f"ECE {ece:.4f}"
    figure.legend(loc="outside upper left", frameon=False, title=title, alignment="left", ncols=3)
    below.bar(
        [(found.low + found.high) / 2 for found in evaluation.reliability],
        [found.images for found in evaluation.reliability],
        width,
        color=GREY,
    )
    tidy_axes(below, "confidence (probability of the predicted class)", "predictions")
    return figure


def _plot_risk_coverage(evaluation: Evaluation) -> Figure:
    figure = create_figure(7.4, 4.4)
    axes = figure.subplots()
    for judged in reversed(evaluation.judged):
        curve = evaluation.risk_coverage[judged.name]
        aurc = judged.metrics["aurc"].value
        is_member = judged.kind == "member"
        axes.plot(
            curve.x,
            curve.y,
            color=_colour(judged),
            linewidth=1 if is_member else 2,
            linestyle=(0, (4, 2)) if is_member else "-",
            label=f"{shorten_name(judged.name)}: AURC {aurc:.4f}",
        )
    review, kept = evaluation.review, evaluation.review.accuracy_kept.value
    if review.share.value is not None and kept is not None:
        axes.plot(1 - review.share.value, 1 - kept, "D", color=RED, markersize=8, label="without review")
    if review.wished_risk is not None:
        axes.axhline(review.wished_risk, color=RED, linewidth=1, linestyle=":", label="target risk")
    tidy_axes(axes, "coverage (fraction of images kept, most confident first)", "risk (error rate)")
    axes.set_xlim(0, 1.02)
    # Leave out the most confident 5 %, where a single error gives a high rate.
    settled = [
        y for curve in evaluation.risk_coverage.values() for x, y in zip(curve.x, curve.y, strict=True) if x > 0.05
    ]
    axes.set_ylim(0, 1.1 * max(*settled, review.wished_risk or 0.0, 0.01))
    handles, labels = axes.get_legend_handles_labels()
    drawn = len(evaluation.judged)
    handles[:drawn], labels[:drawn] = handles[:drawn][::-1], labels[:drawn][::-1]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _plot_prediction_sets(evaluation: Evaluation) -> Figure:
    """Plot the coverage of each class with its interval, and the sizes of sets."""
    names = evaluation.classes[:_MOST_NAMES]
    figure = create_figure(9.5, max(3.4, 1.2 + 0.3 * len(names)))
    axes, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    for y, name in enumerate(names):
        coverage = evaluation.sets.by_class[name].coverage
        draw_interval(axes, y, coverage.value, coverage.low, coverage.high, BLUE)
    if evaluation.sets.wished is not None:
        label = f"target: {evaluation.sets.wished:.0%}"
        axes.axvline(evaluation.sets.wished, color=RED, linestyle=":", linewidth=1.4, label=label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    tidy_axes(axes, "coverage (fraction of images whose set contains the true class)", "")
    name_rows(axes, names)
    counts = evaluation.sets.sizes
    largest = max((size for size, count in enumerate(counts, start=1) if count), default=1)
    shown = max(largest, min(3, len(counts)))
    bars = sizes.bar(range(1, shown + 1), counts[:shown], 0.8, color=BLUE)
    if shown <= 12:
        sizes.bar_label(bars, fontsize=9)
        sizes.set_xticks(range(1, shown + 1))
    tidy_axes(sizes, "classes in the set", "images")
    return figure


def _plot_diversity(evaluation: Evaluation) -> Figure:
    """Plot pairwise disagreement and Q as two matrices."""
    diversity = evaluation.diversity
    if diversity is None:
        raise ValueError("a single member has no pairs")
    names = [judged.name for judged in evaluation.judged if judged.kind == "member"]
    number = len(names)
    tables = {"disagreement": np.full((number, number), np.nan), "Q statistic": np.full((number, number), np.nan)}
    for pair in diversity.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        tables["disagreement"][[i, j], [j, i]] = pair.disagreement
        if pair.q is not None:
            tables["Q statistic"][[i, j], [j, i]] = pair.q
    side = 2.4 + 0.5 * number
    figure = create_figure(2 * side + 1.5, side)
    for axes, (title, table) in zip(figure.subplots(1, 2, sharey=True), tables.items(), strict=True):
        is_q = title != "disagreement"
        top = 1.0 if is_q else max(float(np.nanmax(table)), 1e-9)
        # Q is best near 0, so its colours diverge; disagreement has no best value.
        image = axes.imshow(table, cmap="PuOr" if is_q else "Blues", vmin=-1.0 if is_q else 0.0, vmax=top)
        figure.colorbar(image, ax=axes, fraction=0.046)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(number), [shorten_name(name) for name in names], rotation=45, ha="right")
        axes.set_yticks(range(number), [shorten_name(name) for name in names])
        for i, j in zip(*np.nonzero(~np.isnan(table)), strict=True):
            share = abs(table[i, j]) / top
            colour = "white" if share > 0.6 else "#1f2933"
            axes.text(j, i, f"{table[i, j]:.3f}", ha="center", va="center", fontsize=9, color=colour)
    return figure


def _shown_classes(evaluation: Evaluation, metric: str) -> list[str]:
    """Return the classes that get a curve, the worst by `metric` first and those without a value last."""
    values = {name: evaluation.ensemble.per_class[name][metric].value for name in evaluation.classes}
    ranked = sorted(values, key=lambda name: (values[name] is None, values[name] or 0.0))
    return ranked[:_MOST_CURVES]


def _curve_label(evaluation: Evaluation, name: str, metric: str) -> str:
    value = evaluation.ensemble.per_class[name][metric].value
    return f"{shorten_name(name)}: {value:.4f}"


def _legend_beside(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, title=title, alignment="left")
