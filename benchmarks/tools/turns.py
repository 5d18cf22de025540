"""Measure several cases in turns, so that other work on the machine affects all of them alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

__all__ = ["Case", "error_bars", "in_turns", "measure", "measure_pairs"]

T = TypeVar("T")
# Runs for the given number of seconds and returns images per second.
Case = Callable[[float], float]


def in_turns(cases: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Give every case once in each round, after the number of the round, from 1.

    The order changes, so that other work on the machine does not always hit the same case.
    """
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    for turn in range(1, rounds + 1):
        for case in order.sample(cases, len(cases)):
            yield turn, case


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
    for turn, name in in_turns(list(cases), rounds):
        progress(f"round {turn} of {rounds}: {name}")
        figures[name].append(cases[name](seconds))
    return figures


def measure_pairs(
    cases: Mapping[str, Case], turns: int, seconds: float, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return the images per second of two cases in every turn, in which each stands beside the other.

    The case that comes second finds a warmer machine, or a busier one: they take turns to be it. Arguments as in
    `measure`.
    """
    for case in cases.values():
        case(min(1.0, seconds))
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns):
        progress(f"turn {turn + 1} of {turns}")
        for name in sorted(cases, reverse=bool(turn % 2)):
            rates[name].append(cases[name](seconds))
    return rates


def error_bars(cases: Iterable[Sequence[float]]) -> list[list[float]]:
    """Return the distance of the lowest and of the highest turn from the median of each case, `[2][cases]`."""
    distances = [(statistics.median(turns) - min(turns), max(turns) - statistics.median(turns)) for turns in cases]
    return [list(side) for side in zip(*distances, strict=True)]
