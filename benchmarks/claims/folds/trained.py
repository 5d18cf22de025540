"""Ensembles to compare: one member per fold, and as many members of one split, trained on the same images.

Legend: losses are the NLL of each test image in nats, float64 `[images]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plurum.files import atomic_file
from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.run import Run
from plurum.settings.fitting import FitSettings
from plurum.settings.training import TrainSettings
from plurum.training import fit_run, train_run
from plurum.training.data.labelled_images import LabelledImages
from plurum.training.inference.predictions import decide_splits

__all__ = ["SIDES", "FoldsStudy", "draw_images", "test_losses", "write_images"]

SIDES = ("split", "folds")
# Fraction of the drawn images that validate in one split.
_VALIDATION = 0.2


@dataclass(frozen=True)
class FoldsStudy:
    """Study of both sides on one draw of images.

    Attributes:
        folder: Folder that keeps the images and the runs of the draw.
        arch: Architecture of all members.
        members: Members of each side, and folds of one of them.
        epochs: Epochs of each member.
        seed: Random seed of the draw and of the trainings.
        certification: Fraction of the training images that both sides set aside.
    """

    folder: Path
    arch: str
    members: int
    epochs: int
    seed: int
    certification: float = 0.2

    @property
    def images(self) -> Path:
        """File with the images."""
        return self.folder / "images.npz"

    def run(self, side: str) -> Run:
        """Return the run of a side, which may not be trained yet."""
        return Run(self.folder / side)

    def settings(self, side: str) -> TrainSettings:
        """Return the training settings of a side; they differ only in how the members come about."""
        members: dict[str, Any] = {"folds": self.members} if side == "folds" else {"seeds": self.members}
        return TrainSettings(
            archs=(self.arch,),
            epochs=self.epochs,
            batch_size=128,
            learning_rate=5e-3,
            flip=True,
            precision="fp32",
            seed=self.seed,
            certification=self.certification,
            **members,
        )


def write_images(study: FoldsStudy, data: LabelledImages, number: int) -> None:
    """Write a draw of images and all test images as a MedMNIST file, unless it exists.

    Args:
        study: Study of the draw.
        data: Images to draw from, such as those of Fashion-MNIST.
        number: Number of images to draw for training and validation.
    """
    if study.images.is_file():
        return
    from plurum.spec import ImageSpec

    parts = draw_images(data, number, study.seed)
    image = ImageSpec(height=data.side or 28, width=data.side or 28, mean=(0.0,) * 3, std=(1.0,) * 3)
    arrays: dict[str, Any] = {}
    for part, rows in parts.items():
        arrays[f"{part}_images"] = data.select(rows).pixels(image)[..., 0]
        arrays[f"{part}_labels"] = data.table.labels[rows, None].astype(np.uint8)
    study.folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(study.images) as hidden, hidden.open("wb") as file:
        np.savez(file, **arrays)


def draw_images(data: LabelledImages, number: int, seed: int) -> dict[str, Ints]:
    """Return indices of the images of each part of a MedMNIST file: a draw for `train` and `val`, and all of `test`.

    Args:
        data: Images to draw from.
        number: Number of images to draw; all are drawn if there are fewer.
        seed: Random seed of the draw.
    """
    splits = np.asarray(data.table.splits)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(splits != "test"))[:number]
    held_out = round(_VALIDATION * len(drawn))
    return {"val": drawn[:held_out], "train": drawn[held_out:], "test": np.flatnonzero(splits == "test")}


def test_losses(study: FoldsStudy, side: str) -> Floats:
    """Return the losses of a side's ensemble, which is trained and fitted first; finished stages are kept."""
    run, stage = study.run(side), study.folder / f"{side}.npy"
    if not stage.is_file():
        train_run(str(study.images), study.settings(side), run.path)
        ensemble = fit_run(run.path, FitSettings(select="all", no_outliers=True))
        verdict = decide_splits(run, ensemble, ("test",))["test"]
        table = run.table()
        with atomic_file(stage) as hidden, hidden.open("wb") as file:
            np.save(file, compute_losses(verdict.probabilities, table.labels[table.rows("test")]))
    losses: Floats = np.load(stage)
    return losses
