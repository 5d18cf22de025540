"""Columns of predictions in CSV files, Parquet files and pandas tables; they follow from the table of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plurum.client.connection.predictions import Prediction
from plurum.predictions.outputs import OUTPUTS, Output

__all__ = ["COLUMNS", "FILE_COLUMNS", "cells_by_class", "columns_of_files", "row_from_prediction"]

# Not an output of its own: the highest of the probabilities.
_CONFIDENCE = Output("CONFIDENCE", "FP32", (1,), "confidence", "probability of the winning class, 0 to 1")
# In the order of the columns.
COLUMNS = (OUTPUTS["LABEL"], _CONFIDENCE, *(output for name, output in OUTPUTS.items() if name != "LABEL"))
FILE_COLUMNS = tuple(output for output in COLUMNS if output.in_files)


def columns_of_files(classes: Iterable[str]) -> dict[str, Output]:
    """Return the names of a file's columns, and the output of each."""
    found: dict[str, Output] = {}
    for output in FILE_COLUMNS:
        found |= {output.column.format(name=name): output for name in (classes if "{name}" in output.column else ("",))}
    return found


def row_from_prediction(prediction: Prediction) -> dict[str, Any]:
    """Return all values of a prediction by their columns."""
    row: dict[str, Any] = {}
    for output in COLUMNS:
        value = getattr(prediction, output.field)
        if output.dims == ("M", "C"):
            for member, by_class in value.items():
                row |= cells_by_class(output, by_class, member)
        else:
            row |= cells_by_class(output, value) if isinstance(value, dict) else {output.column: value}
    return row


def cells_by_class(output: Output, values: Mapping[str, Any], member: str = "") -> dict[str, Any]:
    """Return an output's value for each class by its column."""
    return {output.column.format(member=member, name=name): value for name, value in values.items()}
