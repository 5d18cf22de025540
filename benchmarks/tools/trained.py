"""A trained ensemble for measurements: digits at the size of photographs, with enough test images for 0.2 points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from plurum.client import EnsembleClient
from plurum.errors import needs_extra
from plurum.files import atomic_file
from plurum.run import Run

__all__ = ["served_accuracy", "trained_run"]

# Of scikit-learn's 1,797 digits in random order. One other label among 500 validation images is within the budget of
# 0.2 % for the vote; among fewer it would not be.
_PARTS = {"train": slice(0, 297), "val": slice(297, 797), "test": slice(797, 1797)}


def trained_run(work: Path, archs: Sequence[str], size: int, epochs: int) -> Run:
    """Return a fitted run of `archs` under `work`, which is trained once.

    Args:
        work: Folder that keeps the data and the run.
        archs: Architectures that timm knows.
        size: Height and width of the members' input image, pixels.
        epochs: Epochs of each member.
    """
    with needs_extra("training"):
        from plurum.training import FitSettings, TrainSettings, fit_run, train_run
    data = work / "digits.npz"
    if not data.is_file():
        _write(data)
    # Small batches: learning from few images takes many steps, and large images are slow.
    settings = TrainSettings(archs=tuple(archs), epochs=epochs, image_size=size, batch_size=8)
    train_run(str(data), settings, work / "run")
    fit_run(work / "run", FitSettings())
    return Run(work / "run")


def served_accuracy(url: str, run: Run) -> float:
    """Return the accuracy on the run's test images of the server at `url`, 0 to 1."""
    table, pixels, classes = run.table(), run.pixels(), run.ensemble().classes
    rows = table.rows("test")
    with EnsembleClient(url, model="ensemble_pixels") as client:
        found = client.predict(np.array(pixels[row]) for row in rows)
    return fmean(one.label == classes[table.labels[row]] for one, row in zip(found, rows, strict=True))


def _write(path: Path) -> None:
    """Write the digits as a MedMNIST file, which states its splits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    # Four times as large, so that resizing interpolates.
    images = np.kron((digits.images * 255 / 16).astype(np.uint8), np.ones((1, 4, 4), np.uint8))
    arrays: dict[str, Any] = {f"{part}_images": images[order[rows]] for part, rows in _PARTS.items()}
    arrays |= {f"{part}_labels": digits.target[order[rows], None].astype(np.uint8) for part, rows in _PARTS.items()}
    with atomic_file(path) as hidden, hidden.open("wb") as file:
        np.savez(file, **arrays)
