"""Plot a fit, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plurum.training.canvas import (
    BLUE,
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from plurum.figures import DecisionFigures
    from plurum.training.fitting.report import FitReport

__all__ = ["PLOTS", "plots_from_fit"]

# Names of all plots; a fit has those of what it fitted.
PLOTS = ("fit_members", "fit_review", "fit_point", "fit_promise")


def plots_from_fit(report: FitReport) -> dict[str, bytes]:
    """Return the plots of a fit by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = {"fit_members": _plot_members(report), "fit_review": _plot_review(report)}
    if report.rates is not None:
        figures["fit_point"] = _plot_point(report)
    if report.tried_limits:
        figures["fit_promise"] = _plot_promise(report)
    return {name: png_from_figure(figure) for name, figure in figures.items()}


def _plot_members(report: FitReport) -> Figure:
    """Plot each member's weight and contribution to the vote."""
    rows = list(report.members.items())
    figure = create_figure(9.5, 1.6 + 0.34 * len(rows))
    weights, losses = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    for y, (name, member) in enumerate(rows):
        left_out = name in report.left_out
        colour = RED if left_out else BLUE
        weights.barh(y, member.weight, color=BLUE, height=0.6)
        if left_out:
            weights.text(0.01, y, "left out", color=RED, va="center")
        added = member.contribution
        if added is not None:
            draw_interval(losses, y, added.value, added.low, added.high, colour)
    losses.axvline(0, color=GREY, linewidth=1)
    tidy_axes(weights, "weight in the vote", "")
    added_to = (
        "validation NLL without the member" if report.folds is None else "out-of-fold NLL without the architecture"
    )
    tidy_axes(losses, f"increase of {added_to} (nats)\nabove 0: the vote is better with it", "")
    losses.tick_params(axis="y", length=0)
    weights.set_xlim(left=0)
    name_rows(weights, list(report.members))
    return figure


def _plot_review(report: FitReport) -> Figure:
    """Plot the risk–coverage curve of validation images, the target risk, and the range without review."""
    figure = create_figure(7.4, 4.4)
    axes = figure.subplots()
    curve, review = report.risk_coverage, report.ensemble.review
    axes.plot(curve.x, curve.y, color=BLUE, linewidth=2, label="validation images")
    if review.risk is not None:
        axes.axhline(review.risk, color=RED, linewidth=1, linestyle=":", label=f"target risk: {review.risk:.2%}")
        within = [x for x, y in zip(curve.x, curve.y, strict=True) if y <= review.risk]
        # With an operating point of two classes, review is an interval of a probability instead.
        if within and report.rates is None:
            label = f"without review:\nconfidence of at least {review.threshold:.4f}"
            axes.axvspan(0, max(within), color=BLUE, alpha=0.1, linewidth=0, label=label)
    tidy_axes(axes, "coverage (fraction of images kept, most confident first)", "risk (error rate)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.1 * max(*curve.y, review.risk or 0.0, 0.01))
    axes.legend(loc="upper left", frameon=False)
    return figure


def _plot_point(report: FitReport) -> Figure:
    """Plot sensitivity and specificity over the threshold, the chosen threshold, and the interval of review."""
    figure = create_figure(7.4, 4.4)
    axes = figure.subplots()
    point, scores = report.ensemble.operating_point, (report.decisions or {}).get("validation")
    if point is None or point.threshold is None or report.rates is None:
        raise ValueError("expected an operating point of two classes")
    if point.review_interval is not None:
        axes.axvspan(*point.review_interval, color=GREY, alpha=0.2, linewidth=0, label="needs review")
    colours = {"sensitivity": BLUE, "specificity": ORANGE}
    for name, curve in report.rates.items():
        axes.step(curve.x, curve.y, where="pre", color=colours[name], linewidth=2, label=name)
        if name == point.criterion and point.value is not None:
            label = f"requested {name}: {point.value:g}"
            axes.axhline(point.value, color=colours[name], linewidth=1, linestyle=":", label=label)
    axes.axvline(point.threshold, color=RED, linewidth=1, label=f"operating point: {point.threshold:.4f}")
    if scores is not None and scores.images is not None:
        _draw_rates(axes, point.threshold, scores.images, colours)
    positive = shorten_name(point.positive or "")
    tidy_axes(axes, f"probability of {positive} from which the decision is {positive}", "rate of validation images")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _draw_rates(axes: Axes, threshold: float, figures: DecisionFigures, colours: dict[str, str]) -> None:
    """Draw the rates at the threshold with their 95 % intervals."""
    for name, colour in colours.items():
        rate = getattr(figures, name)
        if rate.low is not None and rate.high is not None:
            axes.plot([threshold] * 2, [rate.low, rate.high], color=colour, linewidth=5, solid_capstyle="butt")


def _plot_promise(report: FitReport) -> Figure:
    """Plot the review risk of certification patients over the fraction of reviews, limit by limit as tested."""
    figure = create_figure(7.4, 4.4)
    axes = figure.subplots()
    promise, limits = report.ensemble.promise, report.tried_limits
    for passed, colour, label in ((True, BLUE, "limit that passed"), (False, RED, "first failure")):
        some = [one for one in limits if one.passed is passed]
        if some:
            reviewed = [one.reviewed for one in some]
            axes.vlines(reviewed, [one.risk for one in some], [one.bound for one in some], color=colour, linewidth=1)
            axes.plot(reviewed, [one.risk for one in some], "o", color=colour, markersize=5, label=label)
            axes.plot(reviewed, [one.bound for one in some], "_", color=colour, markersize=8)
    if promise is not None:
        last = [one for one in limits if one.passed][-1]
        axes.axhline(promise.risk, color=RED, linewidth=1, linestyle=":", label=f"promise: {promise.risk:.2%}")
        label = f"chosen limit: confidence {last.limit:.4f}"
        axes.axvline(last.reviewed, color=GREY, linewidth=1, linestyle="--", label=label)
    tidy_axes(axes, "fraction of certification images that need review", "review risk, and its upper bound")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    figure.legend(loc="outside right center", frameon=False)
    return figure
