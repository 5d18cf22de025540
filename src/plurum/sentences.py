"""Sentences about an ensemble's decisions, for the terminal, reports and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from plurum.spec import OperatingPoint
from plurum.voting import VotingRule

__all__ = ["point_text", "review_condition"]


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
