"""Compare one member per fold with as many members of one split.

    python -m plurum.benchmarks.claims.folds

Measured, on draws of images of Fashion-MNIST: the NLL of the ensemble on all test images. Both sides train as many
members of one architecture for as many epochs, set the same fraction of images aside, and are fitted by `plurum fit`
without selecting members. One side learns from the training images of one split; each member of the other learns from
all folds of training and validation images but one. Differences are paired by test image; their intervals cover the
draw of test images, and the rows of the table show how training sets differ. Not measured: other architectures, larger
images, data with patients.

Stages are kept in the work folder: run the same command again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from plurum.benchmarks.claims.folds.trained import SIDES, FoldsStudy, test_losses, write_images
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.predictions.arrays import Floats
from plurum.training import load_data
from plurum.training.statistics.bootstrap import Bootstrap, mean_interval

_FASHION = Path("/usr/share/datasets/fashion-mnist")


def folds(
    work: Annotated[Path, typer.Option(help="Folder that keeps finished stages.")],
    arch: Annotated[str, typer.Option(help="Architecture of all members.")] = "test_byobnet",
    images: Annotated[int, typer.Option(min=200, help="Images for training and validation.")] = 5000,
    members: Annotated[int, typer.Option(min=2, max=20, help="Members of each side, and folds.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member.")] = 12,
    draws: Annotated[int, typer.Option(min=1, help="Draws of images.")] = 1,
    fashion: Annotated[Path, typer.Option(help="Folder with the files of Fashion-MNIST.", exists=True)] = _FASHION,
) -> None:
    """Measure both sides: a table on standard error, a line of JSON on standard output."""
    state = machine()
    data = load_data(str(fashion))
    studies = [FoldsStudy(work / f"draw-{seed}", arch, members, epochs, seed) for seed in range(draws)]
    losses: dict[str, list[Floats]] = {side: [] for side in SIDES}
    for study in studies:
        write_images(study, data, images)
        for side in SIDES:
            losses[side].append(test_losses(study, side))
    rows = {
        **{f"draw {seed + 1}": [losses[side][seed] for side in SIDES] for seed in range(draws)},
        "mean of the draws": [np.mean(losses[side], axis=0) for side in SIDES],
    }
    found = {name: compare_losses(*both) for name, both in rows.items()}
    report = {"arch": arch, "images": images, "members": members, "epochs": epochs, "sides": found}
    command.print_report(report, state, _sides_table(found))


def compare_losses(split: Floats, folds: Floats) -> dict[str, Any]:
    """Return the NLL of both sides, and the difference, folds minus split, with its paired 95 % interval."""
    difference = folds - split
    low, high = mean_interval(difference, Bootstrap(np.arange(len(difference)), 2000, 0))
    return {
        "split_nll": float(split.mean()),
        "folds_nll": float(folds.mean()),
        "difference": float(difference.mean()),
        "interval": [low, high],
    }


def _sides_table(found: dict[str, dict[str, Any]]) -> Table:
    table = command.new_table("", "one split, NLL", "folds, NLL", "folds - split", "95 % interval")
    for name, one in found.items():
        low, high = one["interval"]
        figures = f"{one['split_nll']:.4f}", f"{one['folds_nll']:.4f}", f"{one['difference']:+.4f}"
        table.add_row(name, *figures, f"{low:+.4f} to {high:+.4f}")
    return table


if __name__ == "__main__":
    command.run_as_program(folds)
