"""Answers as a pandas table. Pandas is imported when it is needed, and not before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from plurum.client.predictions import Answer, Failure
from plurum.errors import SettingsError, needs_extra

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predictions_to_frame"]

_COLUMNS = ("label", "confidence", "review", "entropy", "disagreement", "prediction_set")


def predictions_to_frame(answers: Iterable[Answer], index: Sequence[Any] | None = None) -> pd.DataFrame:
    """Return one row per answer: the columns of `plurum predict --csv`, and the members' own probabilities.

    Columns: label, confidence, review, entropy, disagreement, prediction_set (a tuple), `p_CLASS`, `std_CLASS`,
    `MEMBER_p_CLASS`, error (missing for an answer; alone in the row of a failure).

    Args:
        answers: What `predict` or `stream` gave.
        index: The rows' names, such as paths; by default numbers from 0.

    Raises:
        MissingExtraError: pandas is not installed.
        SettingsError: an index of another length.
    """
    with needs_extra("pandas"):
        import pandas as pd
    rows = [_row(answer) for answer in answers]
    if index is not None and len(index) != len(rows):
        raise SettingsError(f"{len(index)} names for {len(rows)} answers; give one each")
    found = dict.fromkeys(name for row in rows for name in row)
    columns = [*_COLUMNS, *(name for name in found if name not in {*_COLUMNS, "error"}), "error"]
    return pd.DataFrame(rows, index=None if index is None else list(index), columns=columns)


def _row(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"error": answer.reason}
    row: dict[str, Any] = {name: getattr(answer, name) for name in _COLUMNS}
    row |= {f"p_{name}": value for name, value in answer.probabilities.items()}
    row |= {f"std_{name}": value for name, value in answer.std.items()}
    for member, probabilities in answer.member_probabilities.items():
        row |= {f"{member}_p_{name}": value for name, value in probabilities.items()}
    return row
