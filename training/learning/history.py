"""How trainings went, epoch by epoch: `history.csv` beside each member, and a picture of all."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plurum.errors import ContractError
from plurum.regular_files import open_regular
from plurum.training.canvas import COLOURS, figure_of, png_from_figure, tidied

__all__ = ["Epoch", "plot_from_histories", "read_history", "write_history"]


@dataclass(frozen=True)
class Epoch:
    """One row of a history.

    Attributes:
        epoch: From 1.
        train_loss: Mean cross-entropy over the epoch's augmented batches, nats.
        validation_accuracy: 0 to 1.
        validation_nll: Nats.
        learning_rate: At the epoch's last step.
        gradient_norm: Mean over the epoch's steps, before it is cut; without those that loss scaling skipped.
        images_per_s: Trained on, validation not counted.
        seconds: Of the whole epoch.
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
    """Return the epochs that the CSV file `path` holds.

    Raises:
        ContractError: it can't be read, or is no history.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [field.name for field in dataclasses.fields(Epoch)][1:]
        return tuple(Epoch(int(row["epoch"]), *(float(row[name]) for name in names)) for row in rows)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ContractError(f"{path} can't be read as a member's history: {error!r}") from error


def plot_from_histories(histories: Mapping[str, Sequence[Epoch]], kept: Mapping[str, Sequence[int]]) -> bytes:
    """Return a picture of losses, accuracies and learning rates by epoch, as a PNG.

    Args:
        histories: By the name of the training.
        kept: The epochs whose weights became members, likewise.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_of(10.5, 3.6)
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
    tidied(loss, "epoch", "NLL, nats (dotted: training loss)")
    tidied(accuracy, "epoch", "validation accuracy")
    tidied(rate, "epoch", "learning rate at its end")
    for axes in (loss, accuracy, rate):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=min(4, len(histories)), frameon=False, title="dots: what is kept")
    return png_from_figure(figure)
