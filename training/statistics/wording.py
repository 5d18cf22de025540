"""Text of an evaluation: sentences, and figures with their intervals, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from plurum.training.statistics.decision_curves import DecisionCurve
from plurum.training.statistics.estimates import Estimate
from plurum.training.statistics.groups import FEWEST_PATIENTS, GroupedFigures, GroupFigures
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import Evaluation
from plurum.voting import VotingRule

__all__ = [
    "comparison_line",
    "curve_rows",
    "difference_text",
    "figure_text",
    "group_cell",
    "group_lines",
    "number_text",
    "percent_text",
    "review_condition",
    "significant_change",
    "verdict_lines",
]

_NONE = "–"
_SIGNIFICANT = 0.05
_TABLE_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def review_condition(rule: VotingRule, classes: Sequence[str]) -> str | None:
    """Return the condition for review at the rule's operating point; None if it is the threshold and the set."""
    point = rule.point
    if point is None:
        return None
    if point.positive is not None:
        if point.review_interval is None:
            return "no probability"
        low, high = point.review_interval
        return f"a probability of {classes[point.positive]} from {low:.4f} to {high:.4f}"
    return None if point.review_cost is None else f"an expected cost above {point.review_cost:g}"


def verdict_lines(evaluation: Evaluation) -> list[str]:
    """Return the summary in one or two sentences: the ensemble's scores, and its difference from the best member."""
    metrics, best = evaluation.ensemble.metrics, f"its best single member, {evaluation.best_single}"
    first = (
        f"On {evaluation.images:,} {evaluation.split} images, the ensemble has an accuracy of "
        f"{percent_text(metrics['accuracy'])} and an NLL of {figure_text(metrics['nll'])} nats."
    )
    if evaluation.diversity is None:
        return [first, "It has a single member, so there is no vote to evaluate."]
    return [first, comparison_line(evaluation.differences, best)]


def comparison_line(differences: Mapping[str, Estimate], best: str) -> str:
    """Return a sentence on the ensemble's differences from `best` in accuracy and NLL, and their significance."""
    said, changes = {}, {}
    for name in ("accuracy", "nll"):
        difference = differences[name]
        said[name] = significant_change(difference, METRICS[name].better)
        changes[name] = difference_text(difference)
    in_words = {
        name: f"significantly {direction}" if direction else "not significantly different"
        for name, direction in said.items()
    }
    if said["accuracy"] == said["nll"]:
        figures = f"accuracy {changes['accuracy']}, NLL {changes['nll']}"
        return f"It is {in_words['accuracy']} {'than' if said['nll'] else 'from'} {best}: {figures}."
    return (
        f"Compared with {best}, it is {in_words['accuracy']} in accuracy, {changes['accuracy']}, and "
        f"{in_words['nll']} in NLL, {changes['nll']}."
    )


def significant_change(difference: Estimate, better: Literal["higher", "lower"]) -> Literal["better", "worse", ""]:
    """Return the direction of a statistically significant difference, whose interval excludes 0 to four decimals.

    Returns:
        `better` or `worse`; an empty text if the difference is not significant.
    """
    if difference.low is None or difference.high is None:
        return ""
    low, high = round(difference.low, 4), round(difference.high, 4)
    if low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (better == "higher") else "worse"


def figure_text(figure: Estimate | None) -> str:
    """Return a figure and its interval with four decimals; a dash for a missing figure."""
    if figure is None or figure.value is None:
        return _NONE
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} ({figure.low:.4f}–{figure.high:.4f})"


def percent_text(figure: Estimate) -> str:
    """Return a fraction and its interval as percentages; `none` for a missing figure."""
    if figure.value is None:
        return "none"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.1%}"
    return f"{figure.value:.1%} ({figure.low:.1%}–{figure.high:.1%})"


def group_lines(column: GroupedFigures) -> list[str]:
    """Return sentences on the groups of a column: the worst, those that differ, and those that are not judged."""
    lines = []
    for figure, name in column.worst.items():
        group = next(one for one in column.groups if one.name == name)
        lines.append(f"The lowest {figure} is that of {name}: {percent_text(group.figures[figure])}.")
    found = [
        f"{group.name} in {figure} (p = {value:.4f})"
        for group in column.groups
        for figure, value in group.p_values.items()
        if value <= _SIGNIFICANT
    ]
    if found:
        lines.append(f"Significant differences from all other images: {', '.join(found)}.")
    elif any(group.p_values for group in column.groups):
        lines.append("No group differs significantly from all other images.")
    if few := [group.name for group in column.groups if not group.is_judged]:
        lines.append(f"Not judged, because of fewer than {FEWEST_PATIENTS} patients: {', '.join(few)}.")
    return lines


def group_cell(group: GroupFigures, figure: str) -> str:
    """Return a group's figure with a star if it differs significantly from all other images."""
    star = "*" if group.p_values.get(figure, 1.0) <= _SIGNIFICANT else ""
    return f"{number_text(group.figures[figure].value)}{star}"


def curve_rows(curve: DecisionCurve) -> list[tuple[float, Estimate, float]]:
    """Return some points of a decision curve: threshold probability, net benefit, and that of deciding all."""
    points = zip(curve.thresholds, curve.net_benefit, curve.low, curve.high, curve.treat_all, strict=True)
    return [
        (threshold, Estimate(value=value, low=low, high=high), whole)
        for threshold, value, low, high, whole in points
        if threshold in _TABLE_THRESHOLDS
    ]


def difference_text(figure: Estimate) -> str:
    """Return a difference and its interval, with signs; a dash for a missing figure."""
    if figure.value is None or figure.low is None or figure.high is None:
        return _NONE
    # Adding 0 turns -0.0 into 0.0.
    value, low, high = (round(number, 4) + 0.0 for number in (figure.value, figure.low, figure.high))
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def number_text(value: float | None) -> str:
    """Return a number with four decimals; a dash for None."""
    return _NONE if value is None else f"{value:.4f}"
