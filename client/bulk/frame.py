"""Answers as a pandas table. Pandas is imported when it is needed, and not before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from plurum.client.connection.predictions import Answer, Failure
from plurum.errors import SettingsError, needs_extra

if TYPE_CHECKING:
    import pandas as pd

    from plurum.client.connection.client import EnsembleClient

__all__ = ["frame_with_predictions", "predictions_to_frame"]

_COLUMNS = ("label", "confidence", "review", "entropy", "disagreement", "prediction_set")


def predictions_to_frame(answers: Iterable[Answer], index: Sequence[Any] | None = None) -> pd.DataFrame:
    """Return one row per answer: the columns of `plurum predict --out`, and the members' own probabilities.

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


def frame_with_predictions(
    client: EnsembleClient, frame: pd.DataFrame, *, path: str = "path", batch_size: int | None = None
) -> pd.DataFrame:
    """Ask about the images that a column of `frame` names, and return the frame with the answers' columns behind it.

    Rows and index stay as they are; the columns are those of `predictions_to_frame`. An image without an answer has
    its `error` alone, and spoils no other.

    Args:
        client: Whom to ask.
        frame: A row per image.
        path: The column with the paths.
        batch_size: As `EnsembleClient.predict` takes it.

    Raises:
        MissingExtraError: pandas is not installed.
        ServerError: no server answers, it fails, or it serves no ensemble.
        SettingsError: there is no such column, or one that the answers would take the place of.
    """
    with needs_extra("pandas"):
        import pandas as pd
    if path not in frame.columns:
        raise SettingsError(f"the frame has no column {path!r}, but {', '.join(map(str, frame.columns))}")
    answers = predictions_to_frame(client.stream(map(str, frame[path]), batch_size=batch_size))
    if both := [str(name) for name in frame.columns if name in set(answers.columns)]:
        raise SettingsError(f"the frame has a column {both[0]!r}, as the answers do; rename it")
    # By place: an index may name a row twice.
    return pd.concat([frame.reset_index(drop=True), answers], axis=1).set_axis(frame.index)


def _row(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"error": answer.reason}
    row: dict[str, Any] = {name: getattr(answer, name) for name in _COLUMNS}
    row |= {f"p_{name}": value for name, value in answer.probabilities.items()}
    row |= {f"std_{name}": value for name, value in answer.std.items()}
    for member, probabilities in answer.member_probabilities.items():
        row |= {f"{member}_p_{name}": value for name, value in probabilities.items()}
    return row
