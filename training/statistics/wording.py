"""A judgement in words and in figures with their intervals, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from plurum.training.statistics.judgement import Figure, Judgement
from plurum.training.statistics.metrics import METRICS

__all__ = [
    "beyond_chance",
    "comparison_line",
    "difference_text",
    "figure_text",
    "number_text",
    "percent_text",
    "verdict_lines",
]

_NONE = "–"


def verdict_lines(judgement: Judgement) -> list[str]:
    """Return what matters most, a sentence each: how good the ensemble is, and whether the vote was worth it."""
    metrics, best = judgement.ensemble.metrics, f"its best single member, {judgement.best_single}"
    first = (
        f"Of {judgement.images:,} {judgement.split} images, the ensemble answers {percent_text(metrics['accuracy'])} "
        f"rightly, with an NLL of {figure_text(metrics['nll'])} nats."
    )
    if judgement.diversity is None:
        return [first, "It has a single member, so that there is no vote to be judged."]
    return [first, comparison_line(judgement.differences, best)]


def comparison_line(differences: Mapping[str, Figure], best: str) -> str:
    """Return a sentence on how the ensemble differs from `best` in accuracy and NLL, and whether beyond chance."""
    said, changes = {}, {}
    for name in ("accuracy", "nll"):
        difference = differences[name]
        said[name] = beyond_chance(difference, METRICS[name].better) or "neither better nor worse"
        changes[name] = difference_text(difference)
    if said["accuracy"] == said["nll"]:
        return (
            f"Beyond chance, it is {said['accuracy']} than {best}, in accuracy, {changes['accuracy']}, and in NLL, "
            f"{changes['nll']}."
        )
    return (
        f"Beyond chance, beside {best}, it is {said['accuracy']} in accuracy, {changes['accuracy']}, and "
        f"{said['nll']} in NLL, {changes['nll']}."
    )


def beyond_chance(difference: Figure, better: Literal["higher", "lower"]) -> Literal["better", "worse", ""]:
    """Return what a difference says where its interval excludes 0, to four decimals, and nothing where it doesn't."""
    if difference.low is None or difference.high is None:
        return ""
    low, high = round(difference.low, 4), round(difference.high, 4)
    if low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (better == "higher") else "worse"


def figure_text(figure: Figure | None) -> str:
    """Return a figure and its interval, to four decimals; a dash for one that does not exist."""
    if figure is None or figure.value is None:
        return _NONE
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} ({figure.low:.4f}–{figure.high:.4f})"


def percent_text(figure: Figure) -> str:
    """Return a share and its interval as percentages; `none` for one that does not exist."""
    if figure.value is None:
        return "none"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.1%}"
    return f"{figure.value:.1%} ({figure.low:.1%}–{figure.high:.1%})"


def difference_text(figure: Figure) -> str:
    """Return a difference and its interval, with their signs."""
    if figure.value is None or figure.low is None or figure.high is None:
        return _NONE
    # Adding 0 turns -0.0 into 0.0.
    value, low, high = (round(number, 4) + 0.0 for number in (figure.value, figure.low, figure.high))
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def number_text(value: float | None) -> str:
    """Return a number to four decimals; a dash for one that does not exist."""
    return _NONE if value is None else f"{value:.4f}"
