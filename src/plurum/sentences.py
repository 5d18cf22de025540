"""Sentences about an ensemble's decisions and the text of figures, for the terminal, reports and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from plurum.figures import FEWEST_PATIENTS, SIGNIFICANT, Estimate, GroupedFigures, GroupFigures
from plurum.spec import OperatingPoint
from plurum.voting import VotingRule

__all__ = ["figure_text", "group_cell", "group_lines", "number_text", "percent_text", "point_text", "review_condition"]

_NONE = "–"


def point_text(point: OperatingPoint) -> str:
    """Return the decision at an operating point and the reason for it, in words."""
    if point.positive is None:
        return "the class with the lowest expected cost"
    rule = f"{point.positive} from a probability of {point.threshold:.4f} on"
    if point.value is None or point.confidence is None:
        return f"{rule}, where both decisions cost the same"
    name = "NPV" if point.criterion == "npv" else point.criterion
    return (
        f"{rule}: {name} of at least {point.value:g} for new patients like those of the validation images, "
        f"at {point.confidence:.0%} confidence"
    )


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


def number_text(value: float | None) -> str:
    """Return a number with four decimals; a dash for None."""
    return _NONE if value is None else f"{value:.4f}"


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
        if value <= SIGNIFICANT
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
    star = "*" if group.p_values.get(figure, 1.0) <= SIGNIFICANT else ""
    return f"{number_text(group.figures[figure].value)}{star}"
