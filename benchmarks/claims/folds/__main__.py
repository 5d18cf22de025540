"""Compare one member per fold with as many members of one split.

    python -m plurum.benchmarks.claims.folds

Measured, on draws of images of Fashion-MNIST: the NLL of the ensemble on all test images. Both sides train as many
members of one architecture for as many epochs, set the same fraction of images aside, and are fitted by `plurum fit`
without selecting members. One side learns from the training images of one split; each member of the other learns from
all folds of training and validation images but one. Differences are paired by test image. The interval of one draw
covers the choice of test images; that of the mean of several draws also covers the draws. Not measured: other
architectures, larger images, data with patients.

Stages are kept in the work folder: run the same command again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from plurum.benchmarks.claims.folds.trained import SIDES, FoldsStudy, test_losses, write_images
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.draws import estimate_over_draws
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.export.repository.cards.markup import table_from_rows
from plurum.figures import Estimate
from plurum.files import write_text
from plurum.predictions.arrays import Floats
from plurum.training import load_data
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.estimates import estimate_mean
from plurum.training.statistics.wording import difference_text

__all__ = ["compare_draws", "folds"]

_COLUMNS = ("", "one split, NLL", "folds, NLL", "folds − split")
_ARCH = "test_byobnet"
_FASHION = Path("/usr/share/datasets/fashion-mnist")


def folds(
    work: Annotated[Path, typer.Option(help="Folder that keeps finished stages.")],
    images: Annotated[int, typer.Option(min=200, help="Images for training and validation.")] = 5000,
    members: Annotated[int, typer.Option(min=2, max=20, help="Members of each side, and folds.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member.")] = 12,
    draws: Annotated[int, typer.Option(min=1, help="Draws of images.")] = 1,
    fashion: Annotated[Path, typer.Option(help="Folder with the files of Fashion-MNIST.", exists=True)] = _FASHION,
    page: Page = None,
) -> None:
    """Measure both sides: a table on standard error, a line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"draws": ""})
    state = machine()
    data = load_data(str(fashion))
    studies = [FoldsStudy(work / f"draw-{seed}", _ARCH, members, epochs, seed) for seed in range(draws)]
    losses: dict[str, list[Floats]] = {side: [] for side in SIDES}
    for study in studies:
        write_images(study, data, images)
        for side in SIDES:
            losses[side].append(test_losses(study, side))
    found = compare_draws(*(np.stack(losses[side]) for side in SIDES))
    table = command.new_table(*_COLUMNS)
    rows = [(name, *_cells(one)) for name, one in found.items()]
    for row in rows:
        table.add_row(*row)
    report = {"arch": _ARCH, "images": images, "members": members, "epochs": epochs, "sides": found}
    command.print_report(report, state, table)
    if page is not None:
        write_text(page, page_with_tables(page, {"draws": table_from_rows(_COLUMNS, rows)}))


def compare_draws(split: Floats, folds: Floats) -> dict[str, dict[str, Any]]:
    """Return the NLL of both sides, and the difference, folds minus split, with its paired 95 % interval, by row.

    Args:
        split: Losses of members of one split, `[draws, images]`.
        folds: Losses of members of folds, `[draws, images]`.

    Returns:
        A row for each draw, and one for their mean if there are several.
    """
    bootstrap = Bootstrap(np.arange(split.shape[1]), 2000, 0)
    rows = {
        f"draw {number}": _compare(one, other, estimate_mean(other - one, bootstrap))
        for number, (one, other) in enumerate(zip(split, folds, strict=True), 1)
    }
    if len(split) > 1:
        rows["mean of the draws"] = _compare(split, folds, estimate_over_draws(folds - split))
    return rows


def _compare(split: Floats, folds: Floats, difference: Estimate) -> dict[str, Any]:
    return {
        "split_nll": float(split.mean()),
        "folds_nll": float(folds.mean()),
        "difference": difference.value,
        "interval": [difference.low, difference.high],
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    low, high = row["interval"]
    difference = difference_text(Estimate(value=row["difference"], low=low, high=high))
    return f"{row['split_nll']:.4f}", f"{row['folds_nll']:.4f}", difference


if __name__ == "__main__":
    command.run_as_program(folds)
