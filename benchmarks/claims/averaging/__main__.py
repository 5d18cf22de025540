"""Compare averages of a training's weights: none, a moving average (EMA), and stochastic weight averaging (SWA).

    python -m plurum.benchmarks.claims.averaging --work runs/averaging

Measured, on draws of images of Fashion-MNIST: NLL and accuracy on all test images, at the temperature that is best on
validation images. `ema` is `plurum train --ema 0.999`, on the same training as `none`. SWA (Izmailov et al., arXiv
1803.05407; torch.optim.swa_utils) averages the weights at the end of each epoch of the last quarter or half of a
training of as many epochs, during which the learning rate stays what the schedule reached; after each of these epochs,
statistics of batch normalisation are computed again. Each way keeps the epoch with the lowest validation NLL.
Differences are paired by draw and by test image, and their intervals cover both. Not measured: large networks, long
trainings, other data, patients.

Finished members and epochs are kept in the work folder: run the same command again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plurum.benchmarks.claims.averaging.comparison import Scored, score_draws
from plurum.benchmarks.claims.averaging.trained import WAYS, AveragingStudy
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.export.repository.cards.markup import table_from_rows
from plurum.figures import Estimate
from plurum.files import write_text
from plurum.training import load_data
from plurum.training.statistics.wording import difference_text

__all__ = ["Draws", "Fashion", "Work", "averaging"]

Work = Annotated[Path, typer.Option(help="Folder that keeps finished members.")]
Fashion = Annotated[Path, typer.Option(help="Folder with the files of Fashion-MNIST.", exists=True)]
Draws = Annotated[int, typer.Option(min=2, help="Draws of images.")]

FASHION = Path("/usr/share/datasets/fashion-mnist")
_COLUMNS = ("", "accuracy", "NLL", "NLL − none", "NLL − ema", "accuracy − ema")


def averaging(
    work: Work,
    arch: Annotated[list[str] | None, typer.Option(help="Architecture; repeat for several.")] = None,
    images: Annotated[int, typer.Option(min=100, help="Images for training and validation.")] = 5000,
    epochs: Annotated[int, typer.Option(min=4, help="Epochs of each training.")] = 12,
    draws: Draws = 4,
    fashion: Fashion = FASHION,
    page: Page = None,
) -> None:
    """Measure all ways: a table on standard error, a line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"weights": ""})
    state, data = machine(), load_data(str(fashion))
    archs = arch or ["test_byobnet"]
    rows: list[tuple[str, ...]] = []
    found: dict[str, Any] = {}
    for name in archs:
        study = AveragingStudy(work / "fashion", data, images, name, epochs, flip=True)
        scored = {way: _score(study, way, draws) for way in WAYS}
        for way in WAYS:
            others = [other for other in ("none", "ema") if way not in {"none", other}]
            differences = {other: scored[way].minus(scored[other]) for other in others}
            found[f"{name}, {way}"] = scored[way].figures(differences)
            rows.append((f"`{name}`, {way}", *scored[way].cells(), *_difference_cells(differences)))
    table = command.new_table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    report = {"images": images, "epochs": epochs, "draws": draws, "ways": found}
    command.print_report(report, state, table)
    if page is not None:
        write_text(page, page_with_tables(page, {"weights": table_from_rows(_COLUMNS, rows)}))


def _score(study: AveragingStudy, way: str, draws: int) -> Scored:
    members = [study.outputs(way, draw) for draw in range(draws)]
    return score_draws([(one.validation, one.validation_labels, one.test, one.test_labels) for one in members])


def _difference_cells(differences: dict[str, dict[str, Estimate]]) -> list[str]:
    shown = [("none", "nll"), ("ema", "nll"), ("ema", "accuracy")]
    return [difference_text(differences[other][figure]) if other in differences else "" for other, figure in shown]


if __name__ == "__main__":
    command.run_as_program(averaging)
