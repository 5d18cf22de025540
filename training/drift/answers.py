"""Predictions of one sample of images, from arrays or from the files that `plurum predict --out` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plurum.errors import DataError, PlurumError, needs_extra
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.regular_files import check_regular, open_regular
from plurum.run import number_patients
from plurum.voting import Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Answers", "answers_from_verdict", "read_answers"]

# Decimals of CSV files; rounding makes samples from files of several formats comparable.
_DECIMALS = 6
_PROBABILITY = "p_"
_TRUE, _FALSE = "true", "false"


@dataclass(frozen=True)
class Answers:
    """Predictions for some images.

    Attributes:
        names: Names of the predictions: files, or a split.
        classes: Class names, in the order of the probabilities.
        probabilities: Probabilities, `[images, classes]`.
        label: Index of each predicted class, `[images]`.
        review: True if the prediction needs review, `[images]`.
        disagreement: Disagreement of the members in nats, `[images]`.
        patients: Patient of each image; an empty string if unknown.
        outlier: Outlier p-value of each image, `[images]`; None if the server computes none.
        failed: Number of images without a prediction, which are left out.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Floats
    label: Ints
    review: Bools
    disagreement: Floats
    patients: tuple[str, ...]
    outlier: Floats | None = None
    failed: int = 0

    @property
    def confidence(self) -> Floats:
        """Probability of each predicted class, `[images]`."""
        return np.take_along_axis(self.probabilities, self.label[:, None], axis=-1)[:, 0]

    @property
    def groups(self) -> Ints:
        """Number of each image's patient, `[images]`."""
        return number_patients(self.patients)

    def select(self, rows: Ints) -> Answers:
        """Return the predictions of the images with these indices."""
        return replace(
            self,
            probabilities=self.probabilities[rows],
            label=self.label[rows],
            review=self.review[rows],
            disagreement=self.disagreement[rows],
            patients=tuple(self.patients[row] for row in rows),
            outlier=None if self.outlier is None else self.outlier[rows],
        )


def answers_from_verdict(
    name: str, classes: Sequence[str], verdict: Verdict, patients: Sequence[str] | None = None
) -> Answers:
    """Return the predictions of a verdict.

    Args:
        name: Name of the predictions.
        classes: Class names, in the order of the probabilities.
        verdict: Verdict on the images; all probabilities are finite.
        patients: Patient of each image; None if no patient is known.
    """
    # Without an outlier test, every p-value is 1; a detector's NaN counts as an outlier.
    outlier = np.nan_to_num(verdict.outlier, nan=0.0)
    return Answers(
        names=(name,),
        classes=tuple(classes),
        probabilities=verdict.probabilities.round(_DECIMALS),
        label=verdict.label,
        review=verdict.review,
        disagreement=verdict.disagreement.round(_DECIMALS),
        patients=("",) * len(verdict.label) if patients is None else tuple(patients),
        outlier=outlier.round(_DECIMALS) if (outlier < 1).any() else None,
    )


def read_answers(paths: Sequence[Path]) -> Answers:
    """Return the predictions in files that `plurum predict --out` wrote, all of the same ensemble.

    Raises:
        DataError: a file can't be read, was not written by `plurum predict`, or has no prediction; or the classes of
            two files differ.
        MissingExtraError: pandas, or pyarrow for a Parquet file, is not installed.
    """
    parts = [_answers_from_frame(path, _frame_from_file(path)) for path in paths]
    classes = parts[0].classes
    for path, part in zip(paths, parts, strict=True):
        if part.classes != classes:
            raise DataError(
                f"{path}: expected the classes of {paths[0]} ({', '.join(classes)}), got {', '.join(part.classes)}. "
                "Give files of one ensemble."
            )
    has_outliers = all(part.outlier is not None for part in parts)
    return Answers(
        names=tuple(map(str, paths)),
        classes=classes,
        probabilities=np.concatenate([part.probabilities for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        review=np.concatenate([part.review for part in parts]),
        disagreement=np.concatenate([part.disagreement for part in parts]),
        patients=tuple(name for part in parts for name in part.patients),
        outlier=np.concatenate([part.outlier for part in parts if part.outlier is not None]) if has_outliers else None,
        failed=sum(part.failed for part in parts),
    )


def _frame_from_file(path: Path) -> pd.DataFrame:
    """Return the rows of a file; cells of CSV files are texts, and missing ones are empty."""
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: expected a file that plurum predict --out wrote ({', '.join(readers)}), got another suffix. "
            "Name such a file."
        )
    try:
        check_regular(path)
        with needs_extra("training", "pandas"):
            return reader(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    # pyarrow's errors are not all of ValueError.
    except Exception as error:
        if isinstance(error, PlurumError):
            raise
        raise DataError(f"{path} can't be read: {' '.join(str(error).split())}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    with open_regular(path) as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
    # pandas takes the first column for an index if rows are longer than the header.
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("its rows have more cells than its header")  # noqa: TRY004 - the fault is the file's
    return frame


def _read_json_lines(path: Path) -> pd.DataFrame:
    import pandas as pd

    with open_regular(path) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return pd.DataFrame([_flatten(row) for row in rows])


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a JSON file with a column for each probability."""
    values = {**row}
    probabilities = values.pop("probabilities", {})
    return values | {f"{_PROBABILITY}{name}": value for name, value in probabilities.items()}


def _read_parquet(path: Path) -> pd.DataFrame:
    with needs_extra("parquet", "pyarrow"):
        import pandas as pd
    with open_regular(path) as file:
        return pd.read_parquet(file)


def _answers_from_frame(path: Path, frame: pd.DataFrame) -> Answers:
    columns = list(frame.columns)
    classes = tuple(name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY))
    missing = [name for name in ("path", "label", "review", "disagreement") if name not in columns]
    if missing or len(classes) < 2:
        what = missing[0] if missing else f"{_PROBABILITY}CLASS"
        raise DataError(
            f"{path}: expected a file that plurum predict --out wrote, got none with a column {what!r}. "
            "Name the file of predictions for images."
        )
    is_answered = frame["error"].fillna("") == "" if "error" in columns else frame["label"].notna()
    rows = frame[is_answered]
    if rows.empty:
        raise DataError(f"{path}: expected at least one prediction, got none. Name a file with predictions.")
    try:
        return _answers_from_rows(path, classes, rows, len(frame) - len(rows))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: expected the values that plurum predict --out writes, got others: {error}") from error


def _answers_from_rows(path: Path, classes: tuple[str, ...], rows: pd.DataFrame, failed: int) -> Answers:
    probabilities = np.stack([_numbers(rows, f"{_PROBABILITY}{name}", 1.0) for name in classes], axis=1)
    if (np.abs(probabilities.sum(axis=1) - 1) > 1e-3).any():
        raise ValueError("the probabilities of an image don't sum to 1")
    places = {name: index for index, name in enumerate(classes)}
    unknown = set(rows["label"]) - set(places)
    if unknown:
        raise ValueError(f"label {min(map(str, unknown))!r} has no column of probabilities")
    # JSON lines state null where the server tests no outliers.
    has_outliers = "outlier" in rows.columns and bool((rows["outlier"].notna() & (rows["outlier"] != "")).any())
    patients = rows["patient"].fillna("") if "patient" in rows.columns else [""] * len(rows)
    return Answers(
        names=(str(path),),
        classes=classes,
        probabilities=probabilities,
        label=np.array([places[name] for name in rows["label"]], dtype=np.int64),
        review=_flags(rows, "review"),
        disagreement=_numbers(rows, "disagreement", np.inf),
        patients=tuple(map(str, patients)),
        outlier=_numbers(rows, "outlier", 1.0, nan=0.0) if has_outliers else None,
        failed=failed,
    )


def _numbers(rows: pd.DataFrame, column: str, most: float, nan: float = np.nan) -> Floats:
    """Return the numbers of a column, from 0 to `most`; `nan` replaces NaN, which is refused by default."""
    values = rows[column].to_numpy().astype(np.float64)
    values = np.where(np.isnan(values), nan, values)
    # Float32 arithmetic may exceed 1 by rounding.
    if not ((values >= 0) & (values <= most + 1e-5) & np.isfinite(values)).all():
        raise ValueError(f"column {column} has values outside of 0 to {most:g}")
    return np.asarray(values.round(_DECIMALS))


def _flags(rows: pd.DataFrame, column: str) -> Bools:
    texts = [str(value).lower() for value in rows[column]]
    if unknown := set(texts) - {_TRUE, _FALSE}:
        raise ValueError(f"column {column} has {min(unknown)!r} instead of {_TRUE} or {_FALSE}")
    return np.array([text == _TRUE for text in texts], dtype=np.bool_)
