"""How differently members err: a vote can only mend what not all of them get wrong. NumPy only.

Legend: winners are `[images, members]`, int64, each member's own answers; labels are `[images]`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

__all__ = ["Diversity", "Pair", "diversity_of", "error_correlation", "q_statistic"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Pair(BaseModel):
    """How differently two members answer.

    Attributes:
        first: A member's name.
        second: Another's.
        disagreement: Share of images to which they give different classes, 0 to 1.
        q: Yule's Q of their being right, -1 to 1: 0 for independent members, above 0 where they tend to be right
            on the same images; None where it would be 0 / 0.
        correlation: Of their errors, -1 to 1; None where one of them errs always or never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    disagreement: float
    q: float | None
    correlation: float | None


class Diversity(BaseModel):
    """How differently the members answer.

    Attributes:
        pairs: Every two of them.
        disagreement: Mean over pairs.
        q: Mean over the pairs that have one; None where none has.
        correlation: Likewise.
        oracle_accuracy: Share of images that at least one member gets right: what always trusting the right one would
            reach.
        all_wrong: Share of images that every member gets wrong; together with the former 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: tuple[Pair, ...]
    disagreement: float
    q: float | None
    correlation: float | None
    oracle_accuracy: float
    all_wrong: float


def q_statistic(first: Bools, second: Bools) -> float | None:
    """Return Yule's Q of two members' being right `[images]` (Kuncheva & Whitaker 2003); None for 0 / 0."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    same, different = both * neither, only_first * only_second
    return (same - different) / (same + different) if same + different else None


def error_correlation(first: Bools, second: Bools) -> float | None:
    """Return the correlation of two members' being right, or wrong, `[images]` (Kuncheva & Whitaker 2003)."""
    if first.all() or second.all() or not first.any() or not second.any():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def diversity_of(winners: Ints, labels: Ints, names: tuple[str, ...]) -> Diversity | None:
    """Return how differently the members `names` answer; None for a single one."""
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
