"""Parameters of a vote, as `ensemble.json` states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .outliers import OutlierTest, outlier_test_from_ensemble

__all__ = ["DecisionPoint", "VotingRule", "point_from_ensemble", "rule_from_ensemble"]


@dataclass(frozen=True)
class DecisionPoint:
    """Operating point: the rule that turns probabilities into the decision, the label.

    Two classes have `positive` and `threshold`, several have `costs`.

    Attributes:
        positive: Index of the positive class; None for several classes.
        threshold: Probability of the positive class from which the decision is positive; None for several classes.
        review_interval: Lowest and highest probability of the positive class at which a decision needs review; None
            reviews none. Only for two classes.
        costs: Cost of each decision, `[true class][decided class]`, of which the lowest expected cost decides; None for
            two classes.
        review_cost: Cost of a review; a decision whose expected cost is higher needs review. None reviews by confidence
            and prediction set. Only for several classes.
    """

    positive: int | None = None
    threshold: float | None = None
    review_interval: tuple[float, float] | None = None
    costs: tuple[tuple[float, ...], ...] | None = None
    review_cost: float | None = None


@dataclass(frozen=True)
class VotingRule:
    """Parameters that turn member probabilities into a verdict.

    Attributes:
        weights: Weights of the members, each ≥ 0, which sum to 1. A stacked vote uses them only for disagreement and
            spread.
        mode: Voting mode, see `MODES`.
        temperature: Temperature applied to the vote's probabilities (Rahaman & Thiery, arXiv 2007.08792); > 0, 1 for
            hard votes.
        quantiles: Largest `1 - probability` at which a class stays in the prediction set, one per class; None keeps
            only the predicted class.
        review_threshold: Confidence below which a prediction needs review, 0 to 1.
        coefficients: Stacking coefficients, `[classes][members * classes]`, the first member's classes first; None
            for other modes.
        intercepts: Stacking intercepts, one per class; None for other modes.
        prior_ratio: Ratio of each class's fraction in production to its fraction in the fitting data, > 0; None if
            they are equal, and for hard votes.
        point: Operating point; None decides for the most probable class.
        outliers: Outlier test, which sends outliers to review; None tests none.
    """

    weights: tuple[float, ...]
    mode: str = "soft"
    temperature: float = 1.0
    quantiles: tuple[float, ...] | None = None
    review_threshold: float = 0.0
    coefficients: tuple[tuple[float, ...], ...] | None = None
    intercepts: tuple[float, ...] | None = None
    prior_ratio: tuple[float, ...] | None = None
    point: DecisionPoint | None = None
    outliers: OutlierTest | None = None


def rule_from_ensemble(ensemble: Mapping[str, Any]) -> VotingRule:
    """Return the voting rule of a parsed `ensemble.json`."""
    voting, conformal = ensemble["voting"], ensemble["conformal"]
    # Older files lack these keys.
    coefficients, intercepts, ratio = (voting.get(key) for key in ("coefficients", "intercepts", "prior_ratio"))
    return VotingRule(
        weights=tuple(voting["weights"]),
        mode=voting["mode"],
        temperature=voting["temperature"],
        quantiles=None if conformal is None else tuple(conformal["quantiles"]),
        review_threshold=ensemble["review"]["threshold"],
        coefficients=None if coefficients is None else tuple(map(tuple, coefficients)),
        intercepts=None if intercepts is None else tuple(intercepts),
        prior_ratio=None if ratio is None else tuple(ratio),
        point=point_from_ensemble(ensemble),
        outliers=outlier_test_from_ensemble(ensemble),
    )


def point_from_ensemble(ensemble: Mapping[str, Any]) -> DecisionPoint | None:
    """Return the operating point of a parsed `ensemble.json`; None if it has none."""
    point = ensemble.get("operating_point")
    if point is None:
        return None
    interval, costs, positive = point["review_interval"], point["costs"], point["positive"]
    if positive is None:
        return DecisionPoint(costs=tuple(map(tuple, costs)), review_cost=point["review_cost"])
    return DecisionPoint(
        positive=ensemble["classes"].index(positive),
        threshold=point["threshold"],
        review_interval=None if interval is None else tuple(interval),
    )
