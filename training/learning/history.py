"""Training history by epoch: `history.csv` of each member, and a plot of all."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import MetadataError
from plurum.regular_files import open_regular
from plurum.training.canvas import COLOURS, create_figure, png_from_figure, tidy_axes

__all__ = ["Epoch", "plot_from_histories", "read_history", "write_history"]


@dataclass(frozen=True)
class Epoch:
    """Row of a training history.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean cross-entropy over the epoch's augmented batches, in nats.
        validation_accuracy: Accuracy on validation images, 0 to 1.
        validation_nll: Mean negative log-likelihood on validation images, in nats.
        learning_rate: Learning rate of the epoch's last step.
        gradient_norm: Mean gradient norm before clipping, without the steps that loss scaling skipped.
        images_per_s: Training images per second, without the time of validation.
        seconds: Duration of the epoch, validation included.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float
    validation_nll: float
    learning_rate: float
    gradient_norm: float
    images_per_s: float
    seconds: float


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """Write the epochs to the CSV file `path`, with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(Epoch))
        writer.writerows(dataclasses.astuple(epoch) for epoch in history)


def read_history(path: Path) -> tuple[Epoch, ...]:
    """Return the epochs in the CSV file `path`.

    Raises:
        MetadataError: the file is unreadable, or is not a history.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [field.name for field in dataclasses.fields(Epoch)][1:]
        return tuple(Epoch(int(row["epoch"]), *(float(row[name]) for name in names)) for row in rows)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise MetadataError(f"{path} can't be read as a member's history: {error!r}") from error


def plot_from_histories(histories: Mapping[str, Sequence[Epoch]], kept: Mapping[str, Sequence[int]]) -> bytes:
    """Return a plot of losses, accuracies and learning rates by epoch, as PNG.

    Args:
        histories: Epochs by name of the training.
        kept: Epochs whose weights became members, by name of the training.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = create_figure(10.5, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    for number, (name, history) in enumerate(histories.items()):
        colour = COLOURS[number % len(COLOURS)]
        epochs = [epoch.epoch for epoch in history]
        loss.plot(epochs, [epoch.train_loss for epoch in history], color=colour, linestyle=":", linewidth=1.2)
        for axes, values in (
            (loss, [epoch.validation_nll for epoch in history]),
            (accuracy, [epoch.validation_accuracy for epoch in history]),
        ):
            axes.plot(epochs, values, color=colour, label=name if axes is loss else None)
            axes.plot(kept[name], [values[epoch - 1] for epoch in kept[name]], "o", color=colour, markersize=5)
        rate.plot(epochs, [epoch.learning_rate for epoch in history], color=colour)
    tidy_axes(loss, "epoch", "NLL, nats (dotted: training loss)")
    tidy_axes(accuracy, "epoch", "validation accuracy")
    tidy_axes(rate, "epoch", "learning rate at the end of the epoch")
    for axes in (loss, accuracy, rate):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=min(4, len(histories)), frameon=False, title="dots: saved epochs")
    return png_from_figure(figure)
