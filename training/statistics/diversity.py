"""Diversity of members' errors, with NumPy: a vote can only correct errors that not all members make.

Legend: winners are `[images, members]`, int64, the class that each member predicts; labels are `[images]`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from plurum.predictions.arrays import Bools, Ints
from plurum.spec import Metadata

__all__ = ["Diversity", "Pair", "error_correlation", "measure_diversity", "q_statistic"]


class Pair(Metadata):
    """Diversity of two members.

    Attributes:
        first: Name of a member.
        second: Name of another member.
        disagreement: Fraction of images for which they predict different classes, 0 to 1.
        q: Yule's Q of correct predictions, -1 to 1; 0 for independent members, above 0 if they tend to be correct on
            the same images, None if it is undefined (0 / 0).
        correlation: Correlation of their errors, -1 to 1; None if one of them is always or never wrong.
    """

    first: str
    second: str
    disagreement: float
    q: float | None
    correlation: float | None


class Diversity(Metadata):
    """Diversity of an ensemble's members.

    Attributes:
        pairs: Diversity of every pair of members.
        disagreement: Mean disagreement over pairs.
        q: Mean Q over pairs with a value; None if there is none.
        correlation: Mean correlation over pairs with a value; None if there is none.
        oracle_accuracy: Fraction of images that at least one member predicts correctly.
        all_wrong: Fraction of images that every member predicts wrong, 1 - `oracle_accuracy`.
    """

    pairs: tuple[Pair, ...]
    disagreement: float
    q: float | None
    correlation: float | None
    oracle_accuracy: float
    all_wrong: float


def q_statistic(first: Bools, second: Bools) -> float | None:
    """Return Yule's Q of two members' correct predictions `[images]` (Kuncheva & Whitaker 2003); None for 0 / 0."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    same, different = both * neither, only_first * only_second
    return (same - different) / (same + different) if same + different else None


def error_correlation(first: Bools, second: Bools) -> float | None:
    """Return the correlation of two members' correct predictions `[images]` (Kuncheva & Whitaker 2003), or None."""
    if first.all() or second.all() or not first.any() or not second.any():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def measure_diversity(winners: Ints, labels: Ints, names: tuple[str, ...]) -> Diversity | None:
    """Return the diversity of the members `names`; None for a single member."""
    if len(names) < 2:
        return None
    right = winners == labels[:, None]
    pairs = tuple(
        Pair(
            first=names[i],
            second=names[j],
            disagreement=float((winners[:, i] != winners[:, j]).mean()),
            q=q_statistic(right[:, i], right[:, j]),
            correlation=error_correlation(right[:, i], right[:, j]),
        )
        for i, j in combinations(range(len(names)), 2)
    )
    oracle = float(right.any(axis=1).mean())
    return Diversity(
        pairs=pairs,
        disagreement=float(np.mean([pair.disagreement for pair in pairs])),
        q=_mean([pair.q for pair in pairs]),
        correlation=_mean([pair.correlation for pair in pairs]),
        oracle_accuracy=oracle,
        all_wrong=1 - oracle,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
