"""Plot a fit, as PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plurum.training.canvas import BLUE, GREY, RED, create_figure, draw_interval, name_rows, png_from_figure, tidy_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plurum.training.fitting.report import FitReport

__all__ = ["plots_from_fit"]


def plots_from_fit(report: FitReport) -> dict[str, bytes]:
    """Return the plots of a fit by name, each a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return {"fit_members": png_from_figure(_plot_members(report)), "fit_review": png_from_figure(_plot_review(report))}


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
    tidy_axes(losses, "increase of validation NLL without the member (nats)\nabove 0: the vote is better with it", "")
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
        if within:
            label = f"without review:\nconfidence of at least {review.threshold:.4f}"
            axes.axvspan(0, max(within), color=BLUE, alpha=0.1, linewidth=0, label=label)
    tidy_axes(axes, "coverage (fraction of images kept, most confident first)", "risk (error rate)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.1 * max(*curve.y, review.risk or 0.0, 0.01))
    axes.legend(loc="upper left", frameon=False)
    return figure
