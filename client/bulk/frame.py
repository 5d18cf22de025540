"""Convert predictions to pandas tables; pandas is imported only when needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from plurum.client.bulk.columns import columns_of_images, row_from_prediction
from plurum.client.connection.predictions import Answer, Failure
from plurum.errors import SettingsError, needs_extra

if TYPE_CHECKING:
    import pandas as pd

    from plurum.client.connection.client import EnsembleClient

__all__ = ["frame_with_predictions", "predictions_to_frame"]


def predictions_to_frame(answers: Iterable[Answer], index: Sequence[Any] | None = None) -> pd.DataFrame:
    """Return one row per image: the columns of `plurum predict --out`, and the members' probabilities.

    Columns: label, confidence, review, entropy, disagreement, prediction_set (a tuple), audit (if the server draws
    audits), `p_CLASS`, `std_CLASS`, `MEMBER_p_CLASS`, error (missing for a prediction; the only value in the row of a
    failure).

    Args:
        answers: Results of `predict` or `stream`.
        index: Index of the table, such as paths; None numbers the rows from 0.

    Raises:
        MissingExtraError: pandas is not installed.
        SettingsError: the index has another length.
    """
    with needs_extra("pandas"):
        import pandas as pd
    rows = [{"error": one.reason} if isinstance(one, Failure) else row_from_prediction(one) for one in answers]
    if index is not None and len(index) != len(rows):
        raise SettingsError(f"index: expected {len(rows)} names, one per answer, got {len(index)}.")
    found = dict.fromkeys([*columns_of_images(()), *(name for row in rows for name in row)])
    columns = [*(name for name in found if name != "error"), "error"]
    return pd.DataFrame(rows, index=None if index is None else list(index), columns=columns)


def frame_with_predictions(
    client: EnsembleClient,
    frame: pd.DataFrame,
    *,
    path: str = "path",
    patient: str | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Classify the images in a column of `frame`, and return the frame with the predictions' columns appended.

    Rows and index are unchanged; the new columns are those of `predictions_to_frame`. A failed image has only an
    `error`, and does not affect the others.

    Args:
        client: Client of the server.
        frame: Table with a row per image.
        path: Name of the column with the paths.
        patient: Name of the column with the patients, by whom a server draws audits; None sends none.
        batch_size: Images per request, as in `EnsembleClient.predict`.

    Raises:
        MissingExtraError: pandas is not installed.
        ServerError: no server responds, the server fails, or it serves no ensemble.
        SettingsError: the column does not exist, or a column has the name of a new one.
    """
    with needs_extra("pandas"):
        import pandas as pd
    for option, column in (("path", path), ("patient", patient)):
        if column is not None and column not in frame.columns:
            raise SettingsError(f"{option}: expected one of {', '.join(map(str, frame.columns))}, got {column!r}.")
    patients = None if patient is None else frame[patient].astype("string").fillna("")
    answers = predictions_to_frame(client.stream(map(str, frame[path]), patients=patients, batch_size=batch_size))
    if both := [str(name) for name in frame.columns if name in set(answers.columns)]:
        raise SettingsError(f"frame: expected no column {both[0]!r}, which the predictions also have. Rename it.")
    # Concatenate by position: an index may repeat a name.
    return pd.concat([frame.reset_index(drop=True), answers], axis=1).set_axis(frame.index)
