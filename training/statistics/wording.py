"""Text of an evaluation: sentences, and figures with their intervals, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from plurum.sentences import figure_text, number_text, percent_text
from plurum.training.statistics.decision_curves import DecisionCurve
from plurum.training.statistics.estimates import Estimate
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.results import CascadeScores, Evaluation

__all__ = ["cascade_line", "comparison_line", "curve_rows", "difference_text", "significant_change", "verdict_lines"]

_TABLE_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def verdict_lines(evaluation: Evaluation) -> list[str]:
    """Return the summary in sentences: the ensemble's scores, its difference from the best member, and the cascade."""
    return [*_vote_lines(evaluation), *([cascade_line(evaluation.cascade)] if evaluation.cascade else [])]


def cascade_line(scores: CascadeScores) -> str:
    """Return a sentence on the cascade's cost and on its differences from the whole vote."""
    changes = {name: difference_text(one) for name, one in scores.differences.items()}
    return (
        f"With the cascade, {percent_text(scores.share)} of the images leave early, at {percent_text(scores.cost)} of "
        f"the whole vote's cost; {scores.hurt:,} of {scores.patients:,} patients are hurt. Against the whole vote: "
        f"accuracy {changes['accuracy']}, NLL {changes['nll']}."
    )


def _vote_lines(evaluation: Evaluation) -> list[str]:
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
        return number_text(None)
    # Adding 0 turns -0.0 into 0.0.
    value, low, high = (round(number, 4) + 0.0 for number in (figure.value, figure.low, figure.high))
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
