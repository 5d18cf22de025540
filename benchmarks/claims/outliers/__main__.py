"""Measure how well outliers are told from images like the training images, by kind and by method.

    python -m plurum.benchmarks.claims.outliers --fashion /usr/share/datasets/fashion-mnist

Three small members are trained for each of two tasks, stained digits and stained clothes, with each of three seeds
(once; the runs are kept). Outliers are the other task's images, photographs, noise, constant and inverted images (far),
and crops, rotations that no augmentation made, and another stain of the task's own test images (near). Told are AUROC
and the rate of false alarms where 95 % of a kind is found. `OUTLIER` is the score behind the p-value of `plurum fit`,
which keeps its order; the other methods score the same members. Members' scores are standardised on validation images
and averaged. Each second kind chose the method; the others report. Not measured: larger images and members, other
augmentation, outliers of clinical data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from plurum.benchmarks.claims.outliers.material import CHOOSING, FAR, NEAR, TaskName, read_tasks
from plurum.benchmarks.claims.outliers.page import method_table, picture_of, suite_tables
from plurum.benchmarks.claims.outliers.plots import plot_from_outliers
from plurum.benchmarks.claims.outliers.result import KindFigure, OutlierResult, csv_from_outliers
from plurum.benchmarks.claims.outliers.suite import ARCHS, ImageShare, measure_task, train_task
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import versions
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.files import write_bytes, write_text

__all__ = ["outliers"]

_FILES = ("outliers.json", "outliers.csv", "outliers.png")


def outliers(  # noqa: PLR0913, PLR0917 - one parameter per option
    fashion: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    out: Annotated[Path, typer.Option(help="Folder for results, written atomically.")] = Path("runs/outliers"),
    work: Annotated[Path, typer.Option(help="Folder that keeps data and runs.")] = Path("runs/outliers-work"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of training seeds.")] = 3,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each member.", show_default="by task")] = None,
    arch: command.Architectures = ARCHS,
    share: ImageShare = 1.0,
    page: Page = None,
) -> None:
    """Measure the detection of outliers: tables on standard output; outliers.json, .csv and .png in a folder."""
    command.check_results_folder(out, _FILES)
    if page is not None:
        page_with_tables(page, dict.fromkeys(("suite", "methods"), ""))
    figures, accuracy = list[KindFigure](), dict[TaskName, tuple[float, ...]]()
    with command.measurement("reading images") as (say, state):
        for seed in range(seeds):
            tasks = read_tasks(fashion, seed, share)
            for name, task in tasks.items():
                say(f"{name}, seed {seed}: training")
                run = train_task(task, name, seed, work, epochs, arch)
                say(f"{name}, seed {seed}: scoring")
                other = tasks["fashion" if name == "digits" else "digits"]
                found, right = measure_task(run, task, other, name, seed)
                figures += found
                accuracy[name] = (*accuracy.get(name, ()), right)
    result = OutlierResult(
        figures=tuple(figures), archs=tuple(arch), accuracy=accuracy, machine=state, versions=versions()
    )
    texts = (result.model_dump_json(indent=1) + "\n", csv_from_outliers(result))
    picture = plot_from_outliers(result)
    command.write_results(out, dict(zip(_FILES, (*texts, picture), strict=True)))
    if page is not None:
        write_text(page, page_with_tables(page, {"suite": suite_tables(result), "methods": method_table(result)}))
        write_bytes(picture_of(page), picture)
    summary = {method: _halves(result, method) for method in result.methods()}
    command.print_report({"mean_auroc": summary}, state, *_tables(result), _choice_table(result))


def _halves(result: OutlierResult, method: str) -> dict[str, float]:
    """Return the mean AUROC over the kinds that chose the method, and over the others."""
    others = [kind for kind in (*FAR, *NEAR) if kind not in CHOOSING]
    halves = {"choosing": CHOOSING, "reporting": others, "near": NEAR, "far": FAR}
    return {name: round(result.mean_auroc(method, kinds), 5) for name, kinds in halves.items()}


def _tables(result: OutlierResult) -> list[Table]:
    """Return a table per task: AUROC, and false alarms at 95 % detection in percent, means over seeds."""
    tables = []
    for task in result.tasks():
        table = command.new_table("", *FAR, *NEAR, title=f"{task}: AUROC, then false alarms at 95 % detection, %")
        for method in result.methods():
            cells = (
                f"{result.mean_auroc(method, [kind], task):.3f}\n{100 * result.mean_fpr95(method, [kind], task):.1f}"
                for kind in (*FAR, *NEAR)
            )
            table.add_row(method, *cells)
        tables.append(table)
    return tables


def _choice_table(result: OutlierResult) -> Table:
    table = command.new_table(
        "", "choosing", "reporting", "near", "far", title="mean AUROC over kinds, tasks and seeds"
    )
    for method in result.methods():
        table.add_row(method, *(f"{value:.4f}" for value in _halves(result, method).values()))
    return table


if __name__ == "__main__":
    command.run_as_program(outliers)
