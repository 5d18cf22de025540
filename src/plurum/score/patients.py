"""Pool the predictions of each patient by a shuffle of the results, as `plurum predict --patients` pools them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.client.bulk.columns import PROBABILITY
from plurum.client.bulk.patients import PatientAnswer, PatientPool
from plurum.client.connection.predictions import Served
from plurum.conventions import PatientRule
from plurum.score.cluster import ray_errors
from plurum.score.destination import Destination

__all__ = ["pool_patients"]

Rows = dict[str, npt.NDArray[Any]]
# Any name: a pool has one patient.
_ONE = "patient"


def _pooling(served: Served, rule: PatientRule | None) -> Callable[[Rows], Rows]:
    """Return a function that pools the rows of one patient into one row."""
    classes, taken = served.classes, rule or served.patient_rule or "mean"

    def pool_rows(rows: Rows) -> Rows:
        pool = PatientPool(classes, taken, served.point)
        probabilities = np.stack([rows[_column(name)] for name in classes], axis=1)
        for label, review, row in zip(rows["label"], rows["review"], probabilities, strict=True):
            # A row without a prediction has neither.
            pool.add(_ONE, label, row, review=bool(review))
        (answer,) = pool.answers()
        by_class = [answer.probabilities.get(name, np.nan) for name in classes]
        values: dict[str, Any] = {"patient": rows["patient"][0], "label": answer.label, "confidence": answer.confidence}
        values |= {"images": answer.images, "review": answer.review, "failed": answer.failed}
        return {name: np.array([value]) for name, value in values.items()} | {"probabilities": np.array([by_class])}

    return pool_rows


def pool_patients(
    ray: Any, destination: Destination, served: Served, rule: PatientRule | None
) -> Iterator[PatientAnswer]:
    """Yield one prediction per patient, sorted by name.

    Args:
        ray: The package, connected.
        destination: Complete results, with a column patient.
        served: Description of the ensemble.
        rule: Rule that pools a patient's predictions; None takes that of the fit, else the mean.

    Raises:
        InterruptedRunError: Ray failed.
    """
    columns = ["patient", "label", "review", *map(_column, served.classes)]
    paths = [destination.path(name) for name in destination.parts()]
    with ray_errors():
        # The shuffle sorts, and its blocks arrive in order.
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        rows = ray.data.read_parquet(paths, filesystem=destination.system, columns=columns)
        pooled = rows.groupby("patient").map_groups(_pooling(served, rule), batch_format="numpy")
        for row in pooled.iter_rows():
            if not row["patient"]:
                # The images without a patient are no patient.
                continue
            by_class = dict(zip(served.classes, map(float, row["probabilities"]), strict=True)) if row["images"] else {}
            yield PatientAnswer(
                patient=str(row["patient"]),
                label=str(row["label"]),
                confidence=float(row["confidence"]),
                probabilities=by_class,
                images=int(row["images"]),
                review=int(row["review"]),
                failed=int(row["failed"]),
            )


def _column(name: str) -> str:
    return PROBABILITY.column.format(name=name)
