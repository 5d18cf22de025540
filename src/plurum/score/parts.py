"""Score one part: read its rows, and write its file of results. Runs in a worker; memory is bounded by a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import DataError
from plurum.score.destination import COUNTS, Destination, PartCounts, part_name
from plurum.score.plan import Part, Plan
from plurum.score.reading import file_system
from plurum.score.scorer import SUBJECTS, Scorer

__all__ = ["score_part", "subjects_of"]

# Rows of a batch; two batches are in memory, with the content of their images.
_ROWS = 64


def score_part(part: Part, plan: Plan, scorer: Scorer, destination: Destination) -> PartCounts:
    """Write the results of a part, unless they are there; return its counts.

    Two workers may score the same part, such as after a node was lost: both write the same rows to the same name.

    Raises:
        DataError: the source has changed since the plan was made.
        OutputError: the results can't be written.
        ServerError: no server responds.
    """
    from pyarrow import parquet

    name = part_name(part.number)
    if known := destination.counts(name):
        return known
    counts, schema = PartCounts(), scorer.schema(subjects_of(plan))
    with destination.writing(name) as path, parquet.ParquetWriter(path, schema) as writer:
        for table in scorer.tables(_read(part, plan)):
            counts += _count(table)
            writer.write_table(table)
        if counts.images != part.stop - part.start:
            raise DataError(f"{plan.files[part.file]} has changed since the job started. Start again with --fresh.")
        writer.add_key_value_metadata({COUNTS.decode(): counts.to_json().decode()})
    return counts


def subjects_of(plan: Plan) -> list[str]:
    """Return the columns of results that come from the source: path, patient and expected, as far as known."""
    return [result for name, result in SUBJECTS.items() if name == "path" or name in plan.columns]


def _read(part: Part, plan: Plan) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the rows of a part, a few at a time, by what their columns hold."""
    from pyarrow import parquet

    name, row = plan.files[part.file], 0
    system, path = file_system(name)
    with system.open(path, "rb") as opened:
        file = parquet.ParquetFile(opened)
        for group in range(file.metadata.num_row_groups):
            stop = row + file.metadata.row_group(group).num_rows
            if stop > part.start and row < part.stop:
                at = row
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=list(plan.columns.values())):
                    first, last = max(part.start - at, 0), min(part.stop - at, batch.num_rows)
                    if first < last:
                        yield _columns(batch.slice(first, last - first), plan, name, at + first)
                    at += batch.num_rows
            row = stop


def _columns(batch: Any, plan: Plan, name: str, row: int) -> dict[str, npt.NDArray[Any]]:
    columns = {what: batch.column(column).to_pylist() for what, column in plan.columns.items()}
    columns.setdefault("path", [f"{name}#row={row + one}" for one in range(batch.num_rows)])
    if "bytes" in columns:
        # A missing image is an empty file, which is refused like any other.
        columns["bytes"] = [one or b"" for one in columns["bytes"]]
    arrays = {}
    for what, values in columns.items():
        arrays[what] = np.empty(len(values), dtype=np.object_)
        arrays[what][:] = values
    return arrays


def _count(table: Any) -> PartCounts:
    labels, review = table.column("label").to_pylist(), table.column("review").to_pylist()
    expected = table.column("expected").to_pylist() if "expected" in table.column_names else [""] * len(labels)
    known = [(one, label) for one, label in zip(expected, labels, strict=True) if one and label is not None]
    return PartCounts(
        images=len(labels),
        review=sum(map(bool, review)),
        failed=labels.count(None),
        labelled=len(known),
        correct=sum(one == label for one, label in known),
    )
