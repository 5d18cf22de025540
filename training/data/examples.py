"""What a model learns from, and in which order it sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plurum.errors import SettingsError
from plurum.spec import ImageSpec
from plurum.training.settings import TrainSettings

if TYPE_CHECKING:
    from plurum.run import Run

__all__ = ["Batches", "Examples", "check_batches"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Images with a class each, to learn from and to be judged by.

    Attributes:
        pixels: `[images, height, width, 3]`, uint8; may be mapped from a file.
        labels: `[images]`, int64.
        train: Indices of the images to learn from.
        validation: Indices of the images that choose the best epoch.
        classes: How many there are.
        image: How pixels are normalised.
    """

    pixels: npt.NDArray[np.uint8]
    labels: Ints
    train: Ints
    validation: Ints
    classes: int
    image: ImageSpec

    @classmethod
    def of(cls, run: Run) -> Examples:
        """Return what lies in the run's data folder."""
        table, data = run.table(), run.data()
        return cls(
            pixels=run.pixels(),
            labels=table.labels,
            train=table.rows("train"),
            validation=table.rows("validation"),
            classes=len(data.classes),
            image=data.image,
        )


def check_batches(settings: TrainSettings, parts: int, images: int | None = None) -> None:
    """Make sure that each of so many processes gets two images of each batch, the least to normalise by.

    Raises:
        SettingsError: batches are too small, or all training images together, where their number is known.
    """
    if parts > 1 and settings.batch_size < 2 * parts:
        raise SettingsError(
            f"--batch-size is {settings.batch_size} for {parts} processes, which divide each batch and need two images "
            f"of it each: {2 * parts} at least, or start fewer"
        )
    if parts > 1 and images is not None and images < 2 * parts:
        raise SettingsError(f"{images} training images are too few for {parts} processes; start fewer")


class Batches:
    """The steps of each epoch: which images, in which order, and what each counts.

    An epoch is the same whenever it is asked for, so that a training can go on in the middle of one.

    Attributes:
        weights: `[classes]`, float32: what an image of each class counts in the loss; 1 on average over the images.
    """

    def __init__(self, examples: Examples, settings: TrainSettings, seed: int, parts: int = 1) -> None:
        """Take the training images of `examples`.

        Args:
            examples: Whose.
            settings: Size of steps, and how classes are balanced.
            seed: What the order is drawn from.
            parts: Into how many each pass will be divided, one per process.

        Raises:
            SettingsError: batches, or all images together, are too few to give each part two.
        """
        self.rows = examples.train
        self.labels = examples.labels
        self.settings = settings
        self.seed = seed
        # Batch normalisation has nothing to normalise by in a batch of one.
        self.least = 2 * parts
        check_batches(settings, parts, len(self.rows))
        counts = np.bincount(self.labels[self.rows], minlength=examples.classes)
        self.shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        balanced = self.shares * len(self.rows) / np.count_nonzero(counts)
        self.weights = (balanced if settings.balance == "weights" else np.ones(len(counts))).astype(np.float32)

    def __len__(self) -> int:
        size = self.settings.batch_size * self.settings.accumulate
        whole, rest = divmod(len(self.rows), size)
        return whole + (rest >= self.least or whole == 0)

    def epoch(self, number: int) -> Iterator[Ints]:
        """Yield the rows of each step of epoch `number`; a last one too small to normalise by is left out."""
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
        """Return the rows of a step, divided into passes of about `batch_size`, none of them smaller."""
        return np.array_split(rows, max(1, len(rows) // self.settings.batch_size))
