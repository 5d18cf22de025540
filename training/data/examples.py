"""Training examples, and the order in which a model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plurum.errors import SettingsError
from plurum.predictions.arrays import Ints
from plurum.settings.training import TrainSettings
from plurum.spec import ImageSpec

if TYPE_CHECKING:
    from plurum.run import Run

__all__ = ["Batches", "Examples", "check_batches"]


@dataclass(frozen=True)
class Examples:
    """Labelled images for training and validation.

    Attributes:
        pixels: Images, uint8 `[images, height, width, 3]`; may be mapped from a file.
        labels: Classes, int64 `[images]`; -1 for training images without a label, which only a loss of their own and
            classes without balance take.
        train: Indices of the training images.
        validation: Indices of the validation images, which choose the best epoch.
        classes: Number of classes.
        image: Image spec, which states the normalisation.
        fingerprint: SHA-256 over pixels and labels; empty if it is not known yet.
        is_fold: True if other members of the run learn the validation images, as with `--folds`.
    """

    pixels: npt.NDArray[np.uint8]
    labels: Ints
    train: Ints
    validation: Ints
    classes: int
    image: ImageSpec
    fingerprint: str = ""
    is_fold: bool = False

    @classmethod
    def of(cls, run: Run, fold: int | None = None) -> Examples:
        """Return the examples in the run's data folder.

        Args:
            run: Run with the images.
            fold: Fold of the training images that validates, while the others are learnt; by default, validation images
                do.
        """
        table, data = run.table(), run.data()
        train, validation = table.rows("train"), table.rows("validation")
        if fold is not None and table.folds is not None:
            train, validation = train[table.folds[train] != fold], train[table.folds[train] == fold]
        return cls(
            pixels=run.pixels(),
            labels=table.labels,
            train=train,
            validation=validation,
            classes=len(data.classes),
            image=data.image,
            fingerprint=data.fingerprint,
            is_fold=fold is not None,
        )


def check_batches(settings: TrainSettings, parts: int, images: int | None = None) -> None:
    """Check that each process gets at least two images of each batch, which batch normalisation needs.

    Args:
        settings: Training settings.
        parts: Number of processes.
        images: Number of training images, if known.

    Raises:
        SettingsError: batches, or all training images together, are too few.
    """
    if parts > 1 and settings.batch_size < 2 * parts:
        raise SettingsError(
            f"--batch-size: expected at least {2 * parts}, two images for each of {parts} processes, "
            f"got {settings.batch_size}. Increase it, or start fewer processes"
        )
    if parts > 1 and images is not None and images < 2 * parts:
        raise SettingsError(f"{images} training images are too few for {parts} processes; start fewer")


class Batches:
    """Images of each step of each epoch, and their weights in the loss.

    Epochs are deterministic, so that a training can resume in the middle of one.

    Attributes:
        weights: Weight of an image of each class in the loss, float32 `[classes]`; 1 on average over the images.
    """

    def __init__(self, examples: Examples, settings: TrainSettings, seed: int, parts: int = 1) -> None:
        """Prepare the batches of the training images of `examples`.

        Args:
            examples: Labelled images.
            settings: Batch size, accumulation and class balance.
            seed: Random seed of the order.
            parts: Number of processes that divide each batch.

        Raises:
            SettingsError: batches, or all images together, are too small to give each process two images.
        """
        self.rows = examples.train
        self.labels = examples.labels
        self.settings = settings
        self.seed = seed
        # Batch normalisation needs at least two images.
        self.least = 2 * parts
        check_batches(settings, parts, len(self.rows))
        labels = self.labels[self.rows]
        counts = np.bincount(labels[labels >= 0], minlength=examples.classes)
        self.shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        balanced = self.shares * len(self.rows) / np.count_nonzero(counts)
        self.weights = (balanced if settings.balance == "weights" else np.ones(len(counts))).astype(np.float32)

    def __len__(self) -> int:
        size = self.settings.batch_size * self.settings.accumulate
        whole, rest = divmod(len(self.rows), size)
        return whole + (rest >= self.least or whole == 0)

    def epoch(self, number: int) -> Iterator[Ints]:
        """Yield the rows of each step of epoch `number`; a last step that is too small is left out."""
        rng = np.random.default_rng([self.seed, number])
        if self.settings.balance == "sampling":
            chances = self.shares[self.labels[self.rows]]
            order = rng.choice(self.rows, len(self.rows), p=chances / chances.sum())
        else:
            order = rng.permutation(self.rows)
        size = self.settings.batch_size * self.settings.accumulate
        for step in range(len(self)):
            yield order[step * size : (step + 1) * size]

    def passes(self, rows: Ints) -> list[Ints]:
        """Divide the rows of a step into forward passes of at least `batch_size` images, if there are as many."""
        return np.array_split(rows, max(1, len(rows) // self.settings.batch_size))
