"""Columns of predictions in CSV files, Parquet files and pandas tables; they follow from the table of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from plurum.client.bulk.patients import PatientAnswer
from plurum.client.connection.predictions import Prediction
from plurum.predictions.outputs import OUTPUTS, Output

__all__ = [
    "COLUMNS",
    "FILE_COLUMNS",
    "PROBABILITY",
    "Kind",
    "cells_by_class",
    "columns_of_images",
    "columns_of_patients",
    "row_from_patient",
    "row_from_prediction",
]

Kind = Literal["text", "texts", "flag", "count", "float32", "float64"]
# Not an output of its own: the probability of the label.
_CONFIDENCE = Output("CONFIDENCE", "FP32", (1,), "confidence", "probability of the label, 0 to 1")
# In the order of the columns.
COLUMNS = (OUTPUTS["LABEL"], _CONFIDENCE, *(output for name, output in OUTPUTS.items() if name != "LABEL"))
FILE_COLUMNS = tuple(output for output in COLUMNS if output.in_files)
PROBABILITY = OUTPUTS["PROBABILITIES"]


def columns_of_images(
    classes: Iterable[str], *, has_audit: bool = False, has_outliers: bool = False, has_cascade: bool = False
) -> dict[str, Kind]:
    """Return the columns of a file with a row per image, and what they hold.

    Args:
        classes: Class names, in the order of the outputs.
        has_audit: True if the server draws predictions for audit.
        has_outliers: True if the server tests for outliers.
        has_cascade: True if the server has a cascade.
    """
    has = {None: True, "audit_rate": has_audit, "outliers": has_outliers, "cascade": has_cascade}
    # A prediction states bits by their names.
    kinds: dict[str, Kind] = {"BYTES": "text", "FP32": "float32", "BOOL": "flag", "UINT8": "texts"}
    found: dict[str, Kind] = {}
    for output in FILE_COLUMNS:
        if not has[output.needs]:
            continue
        kind = "texts" if output.datatype == "BOOL" and not output.is_scalar else kinds[output.datatype]
        names = classes if "{name}" in output.column else ("",)
        found |= dict.fromkeys(cells_by_class(output, dict.fromkeys(names)), kind)
    return found | {"error": "text"}


def columns_of_patients(classes: Iterable[str]) -> dict[str, Kind]:
    """Return the columns of a file with a row per patient, and what they hold."""
    first: dict[str, Kind] = {"patient": "text", "label": "text", "confidence": "float64"}
    counts: dict[str, Kind] = {"images": "count", "review": "count", "failed": "count"}
    return first | counts | dict.fromkeys(cells_by_class(PROBABILITY, dict.fromkeys(classes)), "float64")


def row_from_prediction(prediction: Prediction) -> dict[str, Any]:
    """Return all values of a prediction by their columns."""
    row: dict[str, Any] = {}
    for output in COLUMNS:
        value = getattr(prediction, output.field)
        if output.is_optional and value is None:
            continue
        if output.dims == ("M", "C"):
            for member, by_class in value.items():
                # A member that did not run has empty cells.
                row |= cells_by_class(output, by_class or dict.fromkeys(prediction.probabilities), member)
        else:
            row |= cells_by_class(output, value) if isinstance(value, dict) else {output.column: value}
    return row


def row_from_patient(answer: PatientAnswer) -> dict[str, Any]:
    """Return the values of a patient by their columns; without any prediction, label and confidence are missing."""
    row = answer.to_dict()
    if not answer.images:
        del row["label"], row["confidence"]
    return row | cells_by_class(PROBABILITY, row.pop("probabilities"))


def cells_by_class(output: Output, values: Mapping[str, Any], member: str = "") -> dict[str, Any]:
    """Return an output's value for each class by its column."""
    return {output.column.format(member=member, name=name): value for name, value in values.items()}
