"""Files of predictions, as `plurum predict --out` writes them."""

from __future__ import annotations

from pathlib import Path

from plurum.client import Failure
from plurum.client.bulk.columns import columns_of_images
from plurum.client.bulk.formats import RowSubject, format_from_path
from tests.client.samples import prediction

__all__ = ["CLASSES", "write_answers"]

CLASSES = ("CE", "LAA")


def write_answers(path: Path) -> Path:
    """Write three predictions, one without a patient, and a failure."""
    form = format_from_path(path, columns_of_images(CLASSES))
    rows = form.writer(path, ("path", "patient"))
    rows.add(RowSubject("a.png", "ann"), form.body(prediction("CE", 0.9375, review=False)))
    rows.add(RowSubject("broken.png", "ann"), form.body(Failure(1, "broken.png", "not an image")))
    rows.add(RowSubject("b.png", "007"), form.body(prediction("LAA", 0.75)))
    rows.add(RowSubject("c.png", ""), form.body(prediction("CE", 0.5)))
    rows.close()
    return path
