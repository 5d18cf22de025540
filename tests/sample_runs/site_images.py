"""Labelled images of a site for `decided_run`: digits that the run does not have, in other frequencies and darker."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tests.sample_runs.decided_run import CLASSES

__all__ = ["write_site"]

# Digits of each class that `decided_run` takes, from the first on.
_TAKEN = 550


def write_site(folder: Path, *, ce: int, laa: int, skip: int = 0, patients: bool = True) -> Path:
    """Write images with a manifest `site.csv`, and return its path.

    Args:
        folder: New folder.
        ce: Images of CE, one per patient.
        laa: Images of LAA.
        skip: Images of each class to leave out before, for images that differ from those of another call.
        patients: If True, state patients.
    """
    digits = load_digits()
    (folder / "images").mkdir(parents=True)
    rows = []
    for odd, (name, number) in enumerate(zip(CLASSES, (ce, laa), strict=True)):
        found = np.flatnonzero(digits.target % 2 == odd)[_TAKEN + skip :][:number]
        assert len(found) == number
        for index in found:
            path = f"images/{index}.png"
            pixels = np.rint(digits.images[index] * 0.8 * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / path)
            rows.append([path, name, f"site patient {index}" if patients else ""])
    manifest = folder / "site.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient"], *rows])
    return manifest
