"""Pictures of a judgement and of a fit, as PNG; the only module that knows matplotlib.

Figures are made as objects, without pyplot: nothing global is touched, and no display is needed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from plurum.errors import needs_extra
from plurum.training.judgement import Judged, Judgement
from plurum.training.scores import BINS, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from plurum.training.findings import FitReport

__all__ = ["plots_from_fit", "plots_from_judgement"]

_DPI = 110
_BLUE, _ORANGE, _GREY, _RED = "#0067a5", "#d55e00", "#8a8f98", "#b3261e"
# Okabe & Ito's, which most people with other colour vision can tell apart, then more.
_COLOURS = (
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
# More classes than this in one plot are a tangle: then those with the smallest areas are shown.
_MOST_CURVES = len(_COLOURS)
_MOST_NAMES = 30
_COMPARED = ("accuracy", "balanced_accuracy", "nll", "ece")


def plots_from_judgement(judgement: Judgement) -> dict[str, bytes]:
    """Return the pictures by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("training"):
        import matplotlib.figure  # noqa: F401
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
    return {name: _png(figure) for name, figure in figures.items()}


def plots_from_fit(report: FitReport) -> dict[str, bytes]:
    """Return the pictures of a fit by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("training"):
        import matplotlib.figure  # noqa: F401
    return {"fit_members": _png(_members(report)), "fit_review": _png(_fitted_review(report))}


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # No software version inside: the same judgement gives the same bytes.
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidied(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(judged: Judged) -> str:
    return {"ensemble": _BLUE, "best": _ORANGE, "member": _GREY}[judged.kind]


def _comparison(judgement: Judgement) -> Figure:
    """Everyone's value and interval, one panel per metric."""
    rows = judgement.judged
    figure = _figure(10.5, 1.3 + 0.32 * len(rows))
    panels = figure.subplots(1, len(_COMPARED), sharey=True)
    for axes, name in zip(panels, _COMPARED, strict=True):
        for y, judged in enumerate(rows):
            value = judged.metrics[name]
            if value.value is None or value.low is None or value.high is None:
                continue
            axes.plot([value.low, value.high], [y, y], color=_colour(judged), linewidth=2.5, solid_capstyle="round")
            axes.plot(value.value, y, "o", color=_colour(judged), markersize=6)
        metric = METRICS[name]
        _tidied(axes, f"{metric.title}\n{metric.better} is better", "")
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [_short(judged.name) for judged in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _confusion(judgement: Judgement) -> Figure:
    """Counts, coloured by the share of each true class."""
    counts = np.array(judgement.confusion)
    number = len(counts)
    side = min(9.0, 3.0 + 0.45 * number)
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if number > _MOST_NAMES:
        return figure
    names = [_short(name) for name in judgement.classes]
    slanted = max(map(len, names)) > 4
    axes.set_xticks(range(number), names, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(number), names)
    size = 10 if number <= 10 else 7
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "#1f2933"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
    return figure


def _roc(judgement: Judgement) -> Figure:
    figure = _figure(6.6, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
    for colour, name in zip(_COLOURS, _shown(judgement, "roc_auc"), strict=False):
        if curve := judgement.curves[name].roc:
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=_labelled(judgement, name, "roc_auc"))
    _tidied(axes, "false-positive rate (1 - specificity)", "true-positive rate (sensitivity)")
    _legend_beside(figure, axes, "class: area (worst first)")
    return figure


def _precision_recall(judgement: Judgement) -> Figure:
    figure = _figure(6.6, 4.6)
    axes = figure.subplots()
    for colour, name in zip(_COLOURS, _shown(judgement, "average_precision"), strict=False):
        if curve := judgement.curves[name].precision_recall:
            label = _labelled(judgement, name, "average_precision")
            axes.step(curve.x, curve.y, where="pre", color=colour, linewidth=1.6, label=label)
    _tidied(axes, "recall (sensitivity)", "precision")
    axes.set_ylim(-0.02, 1.02)
    _legend_beside(figure, axes, "class: average precision\n(worst first)")
    return figure


def _reliability(judgement: Judgement) -> Figure:
    """Accuracy over confidence, and below it how many answers there are of each."""
    figure = _figure(5.4, 5.6)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1.2, label="as sure as right")
    filled = [found for found in judgement.reliability if found.accuracy is not None]
    centres = [(found.low + found.high) / 2 for found in filled]
    right = np.array([found.accuracy for found in filled], dtype=np.float64)
    sure = np.array([found.confidence for found in filled], dtype=np.float64)
    width = 0.92 / BINS
    axes.bar(centres, right, width, color=_BLUE, label="accuracy")
    axes.bar(
        centres,
        sure - right,
        width,
        bottom=right,
        color="none",
        edgecolor=_RED,
        hatch="////",
        linewidth=0.8,
        label="gap to mean confidence",
    )
    ece = judgement.ensemble.metrics["ece"].value
    _tidied(axes, "", "accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    title = "ECE does not exist" if ece is None else f"ECE {ece:.4f}"
    figure.legend(loc="outside upper left", frameon=False, title=title, alignment="left", ncols=3)
    below.bar(
        [(found.low + found.high) / 2 for found in judgement.reliability],
        [found.images for found in judgement.reliability],
        width,
        color=_GREY,
    )
    _tidied(below, "confidence (probability of the winner)", "answers")
    return figure


def _risk_coverage(judgement: Judgement) -> Figure:
    figure = _figure(7.4, 4.4)
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
            label=f"{_short(judged.name)}: AURC {aurc:.4f}",
        )
    review, kept = judgement.review, judgement.review.accuracy_kept.value
    if review.share.value is not None and kept is not None:
        axes.plot(1 - review.share.value, 1 - kept, "D", color=_RED, markersize=8, label="without those for review")
    if review.wished_risk is not None:
        axes.axhline(review.wished_risk, color=_RED, linewidth=1, linestyle=":", label="risk wished for")
    _tidied(axes, "coverage (share of images answered, surest first)", "risk (share of wrong answers)")
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
    figure = _figure(9.5, max(3.4, 1.2 + 0.3 * len(names)))
    axes, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    for y, name in enumerate(names):
        coverage = judgement.sets.by_class[name].coverage
        if coverage.value is None or coverage.low is None or coverage.high is None:
            continue
        axes.plot([coverage.low, coverage.high], [y, y], color=_BLUE, linewidth=2.5, solid_capstyle="round")
        axes.plot(coverage.value, y, "o", color=_BLUE, markersize=6)
    if judgement.sets.wished is not None:
        label = f"wished for: {judgement.sets.wished:.0%}"
        axes.axvline(judgement.sets.wished, color=_RED, linestyle=":", linewidth=1.4, label=label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    _tidied(axes, "coverage (share of images whose set holds their class)", "")
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    counts = judgement.sets.sizes
    largest = max((size for size, count in enumerate(counts, start=1) if count), default=1)
    shown = max(largest, min(3, len(counts)))
    bars = sizes.bar(range(1, shown + 1), counts[:shown], 0.8, color=_BLUE)
    if shown <= 12:
        sizes.bar_label(bars, fontsize=9)
        sizes.set_xticks(range(1, shown + 1))
    _tidied(sizes, "classes in the set", "images")
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
    figure = _figure(2 * side + 1.5, side)
    for axes, (title, table) in zip(figure.subplots(1, 2, sharey=True), tables.items(), strict=True):
        is_q = title != "disagreement"
        top = 1.0 if is_q else max(float(np.nanmax(table)), 1e-9)
        # Q is best near 0, disagreement has no best: the darker, the more alike or the more different.
        image = axes.imshow(table, cmap="PuOr" if is_q else "Blues", vmin=-1.0 if is_q else 0.0, vmax=top)
        figure.colorbar(image, ax=axes, fraction=0.046)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(number), [_short(name) for name in names], rotation=45, ha="right")
        axes.set_yticks(range(number), [_short(name) for name in names])
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
    return f"{_short(name)}: {value:.4f}"


def _legend_beside(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, title=title, alignment="left")


def _short(name: str) -> str:
    """Return a name that leaves room for the plot, and in which matplotlib finds no formula."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")


def _members(report: FitReport) -> Figure:
    """Each member's weight, and what the vote would lose without it."""
    rows = list(report.members.items())
    figure = _figure(9.5, 1.6 + 0.34 * len(rows))
    weights, losses = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    for y, (name, member) in enumerate(rows):
        left_out = name in report.left_out
        colour = _RED if left_out else _BLUE
        weights.barh(y, member.weight, color=_BLUE, height=0.6)
        if left_out:
            weights.text(0.01, y, "left out", color=_RED, va="center")
        added = member.contribution
        if added is not None and added.value is not None and added.low is not None and added.high is not None:
            losses.plot([added.low, added.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
            losses.plot(added.value, y, "o", color=colour, markersize=6)
    losses.axvline(0, color=_GREY, linewidth=1)
    _tidied(weights, "weight in the vote", "")
    _tidied(losses, "validation NLL more without it (nats)\nright of 0: the vote is better with it", "")
    losses.tick_params(axis="y", length=0)
    weights.set_xlim(left=0)
    weights.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
    weights.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _fitted_review(report: FitReport) -> Figure:
    """Validation images by confidence: how many are answered, how many of those wrongly, and where review begins."""
    figure = _figure(7.4, 4.4)
    axes = figure.subplots()
    curve, review = report.risk_coverage, report.ensemble.review
    axes.plot(curve.x, curve.y, color=_BLUE, linewidth=2, label="validation images")
    if review.risk is not None:
        axes.axhline(review.risk, color=_RED, linewidth=1, linestyle=":", label=f"risk wished for: {review.risk:.2%}")
        within = [x for x, y in zip(curve.x, curve.y, strict=True) if y <= review.risk]
        if within:
            label = f"answered without a person:\nconfidence of {review.threshold:.4f} or more"
            axes.axvspan(0, max(within), color=_BLUE, alpha=0.1, linewidth=0, label=label)
    _tidied(axes, "coverage (share of images answered, surest first)", "risk (share of wrong answers)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.1 * max(*curve.y, review.risk or 0.0, 0.01))
    axes.legend(loc="upper left", frameon=False)
    return figure
