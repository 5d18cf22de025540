"""Trained ensembles for measurements: digits or clothes at the size of photographs, with enough test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plurum.benchmarks.tools.fashion import write_material
from plurum.client import EnsembleClient
from plurum.errors import needs_extra
from plurum.files import atomic_file
from plurum.predictions.arrays import Bools
from plurum.predictions.prediction import Prediction
from plurum.run import Run

__all__ = ["are_correct", "cascade_run", "served_accuracy", "served_predictions", "trained_run"]

# Of scikit-learn's 1,797 digits in random order. One other label among 500 validation images is within the budget of
# 0.2 % for the vote; among fewer it would not be.
_PARTS = {"train": slice(0, 297), "val": slice(297, 797), "test": slice(797, 1797)}
# A cascade is certified with images that nothing else learns from: two thirds of the training part, and 1 % of half of
# them may be hurt. The promise of 0.2 % takes more images.
_CASCADE_PARTS = {"train": slice(0, 897), "val": slice(897, 1097), "test": slice(1097, 1797)}
_DIGITS_SHARE = 2 / 3
_FASHION_LEARNT, _FASHION_CERTIFICATION = 2_000, 6_000


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
        _write(data, _PARTS)
    # Small batches: learning from few images takes many steps, and large images are slow.
    settings = TrainSettings(archs=tuple(archs), epochs=epochs, image_size=size, batch_size=8)
    train_run(str(data), settings, work / "run")
    fit_run(work / "run", FitSettings())
    return Run(work / "run")


def cascade_run(work: Path, archs: Sequence[str], size: int, epochs: int, fashion: Path | None = None) -> Run:
    """Return a run of `archs` under `work` with a fitted cascade, which is trained once.

    Args:
        work: Folder that keeps the data and the run.
        archs: Architectures that timm knows.
        size: Height and width of the members' input image, pixels.
        epochs: Epochs of each member.
        fashion: Folder with the files of Fashion-MNIST, for a cascade that may hurt 0.2 % of new images; None for
            digits, and the smallest fraction that their number allows.

    Raises:
        DataError: the folder does not hold Fashion-MNIST.
    """
    with needs_extra("training"):
        from plurum.training import FitSettings, TrainSettings, fit_run, train_run
    if fashion is None:
        data, share = work / "digits.npz", _DIGITS_SHARE
        if not data.is_file():
            _write(data, _CASCADE_PARTS)
    else:
        labelled = _FASHION_LEARNT + _FASHION_CERTIFICATION
        data, share = write_material(fashion, work, labelled, 0)[0], _FASHION_CERTIFICATION / labelled
    settings = TrainSettings(
        archs=tuple(archs), epochs=epochs, image_size=size, batch_size=8, certification=round(share, 3)
    )
    train_run(str(data), settings, work / "run")
    fit_run(work / "run", FitSettings(cascade=True, cascade_risk="auto" if fashion is None else 0.002))
    return Run(work / "run")


def served_predictions(url: str, run: Run, *, full: bool = False) -> list[Prediction]:
    """Return the predictions of the server at `url` for the run's test images, of all members if `full`."""
    pixels = run.pixels()
    with EnsembleClient(url, model="ensemble_pixels", full=full) as client:
        return list(client.predict(np.array(pixels[row]) for row in run.table().rows("test")))


def served_accuracy(url: str, run: Run) -> float:
    """Return the accuracy on the run's test images of the server at `url`, 0 to 1."""
    return float(np.mean(are_correct(served_predictions(url, run), run)))


def are_correct(predictions: Sequence[Prediction], run: Run) -> Bools:
    """Return whether the label of each test image is the true one, `[images]`."""
    table, classes = run.table(), run.ensemble().classes
    true = [classes[table.labels[row]] for row in table.rows("test")]
    return np.array([one.label == name for one, name in zip(predictions, true, strict=True)])


def _write(path: Path, parts: Mapping[str, slice]) -> None:
    """Write the digits as a MedMNIST file, which states its splits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    # Four times as large, so that resizing interpolates.
    images = np.kron((digits.images * 255 / 16).astype(np.uint8), np.ones((1, 4, 4), np.uint8))
    arrays: dict[str, Any] = {f"{part}_images": images[order[rows]] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": digits.target[order[rows], None].astype(np.uint8) for part, rows in parts.items()}
    with atomic_file(path) as hidden, hidden.open("wb") as file:
        np.savez(file, **arrays)
