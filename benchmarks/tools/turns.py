"""Measure several cases in turns, so that other work on the machine affects all of them alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Case", "error_bars", "measure"]

# Runs for the given number of seconds and returns images per second.
Case = Callable[[float], float]


def measure(
    cases: Mapping[str, Case], rounds: int, seconds: float, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return each case's images per second in every round, after a warm-up that does not count.

    Args:
        cases: Cases by name.
        rounds: Number of turns of every case.
        seconds: Length of a turn.
        progress: Receives one line before every turn.
    """
    for name, case in cases.items():
        progress(f"warm-up: {name}")
        case(min(1.0, seconds))
    figures: dict[str, list[float]] = {name: [] for name in cases}
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    for turn in range(rounds):
        # Another order in each round, so that other work on the machine does not always hit the same case.
        for name in order.sample(list(cases), len(cases)):
            progress(f"round {turn + 1} of {rounds}: {name}")
            figures[name].append(cases[name](seconds))
    return figures


def error_bars(cases: Iterable[Sequence[float]]) -> list[list[float]]:
    """Return the distance of the lowest and of the highest turn from the median of each case, `[2][cases]`."""
    distances = [(statistics.median(turns) - min(turns), max(turns) - statistics.median(turns)) for turns in cases]
    return [list(side) for side in zip(*distances, strict=True)]
