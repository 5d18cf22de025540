"""Samples of a trained ensemble's predictions with and without a shift, and the p-values of the test for drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plurum.errors import SettingsError, needs_extra
from plurum.files import atomic_file
from plurum.predictions.arrays import Ints
from plurum.run import Run
from plurum.settings.drift import DriftSettings

__all__ = ["CASES", "draw_p_values", "prepare_run"]

CASES = ("no shift", "20 points more of one class", "Gaussian blur of 1.5 pixels")
_BLUR_PX, _POINTS, _SIZE = 1.5, 0.2, 32
# Fractions of all images, in random order; the rest are test images.
_TRAIN, _VALIDATION = 0.15, 0.35


def prepare_run(data: str, work: Path, archs: Sequence[str], epochs: int, most: int) -> Run:
    """Return a fitted run of `archs` under `work`, which is trained once.

    Args:
        data: Data as `plurum train` takes it.
        work: Folder that keeps the data and the run.
        archs: Architectures that timm knows.
        epochs: Epochs of each member.
        most: Largest number of images to use.
    """
    with needs_extra("training"):
        from plurum.training import FitSettings, TrainSettings, fit_run, train_run
    file = work / "parts.npz"
    if not file.is_file():
        _write_parts(file, data, most)
    train_run(str(file), TrainSettings(archs=tuple(archs), epochs=epochs, batch_size=32), work / "run")
    fit_run(work / "run", FitSettings())
    return Run(work / "run")


def _write_parts(path: Path, data: str, most: int) -> None:
    """Write the images at the members' input size as a MedMNIST file, which states its splits."""
    from plurum.spec import ImageSpec
    from plurum.training import load_data

    images = load_data(data)
    images = images.select(np.random.default_rng(0).permutation(len(images))[:most])
    size = ImageSpec(height=_SIZE, width=_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels, labels = images.pixels(size), images.table.labels.astype(np.uint8)[:, None]
    ends = [0, int(len(images) * _TRAIN), int(len(images) * (_TRAIN + _VALIDATION)), len(images)]
    arrays: dict[str, Any] = {}
    for name, start, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
        arrays |= {f"{name}_images": pixels[start:end], f"{name}_labels": labels[start:end]}
    with atomic_file(path) as hidden, hidden.open("wb") as file:
        np.savez(file, **arrays)


def draw_p_values(run: Run, images: int, draws: int, seed: int = 0) -> dict[str, list[float]]:
    """Return the p-value of each draw, by case.

    Args:
        run: Fitted run.
        images: Images of each sample.
        draws: Draws of each case.
        seed: Random seed.

    Raises:
        SettingsError: the run has fewer validation or test images than a sample.
    """
    from plurum.training.drift.answers import answers_from_verdict
    from plurum.training.drift.detect import compare_answers
    from plurum.training.evaluation.corruptions import blur
    from plurum.training.inference.predictions import predict_pixels
    from plurum.voting import decide

    ensemble, table = run.ensemble(), run.table()
    rows = {split: table.rows(split) for split in ("validation", "test")}
    if (fewest := min(map(len, rows.values()))) < images:
        raise SettingsError(f"--images: expected at most {fewest}, the images of a split, got {images}. Use more data.")
    pixels = {split: run.pixels()[which] for split, which in rows.items()}
    pixels["blurred"] = np.stack([blur(image, _BLUR_PX) for image in pixels["test"]])
    pools = {
        name: answers_from_verdict(
            name, ensemble.classes, decide(predict_pixels(run, ensemble.members, some, name), ensemble.rule)
        )
        for name, some in pixels.items()
    }
    labels = table.labels[rows["test"]]
    p_values: dict[str, list[float]] = {name: [] for name in CASES}
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        reference = pools["validation"].select(rng.choice(len(rows["validation"]), images, replace=False))
        samples = (
            pools["test"].select(rng.choice(len(labels), images, replace=False)),
            pools["test"].select(_shift_mix(labels, images, rng)),
            pools["blurred"].select(rng.choice(len(labels), images, replace=False)),
        )
        for case, sample in zip(CASES, samples, strict=True):
            p_values[case].append(compare_answers(reference, sample, DriftSettings(seed=draw)).p_value)
    return p_values


def _shift_mix(labels: Ints, images: int, rng: np.random.Generator) -> Ints:
    """Return rows of a sample in which a random class has 20 points more than in all rows."""
    shares = np.bincount(labels) / len(labels)
    more = rng.integers(len(shares))
    shifted = shares * (1 - shares[more] - _POINTS) / (1 - shares[more])
    shifted[more] = shares[more] + _POINTS
    weights = (shifted / shares)[labels]
    return rng.choice(len(labels), images, replace=False, p=weights / weights.sum())
