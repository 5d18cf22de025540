"""`plurum train`: train members on labelled images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table
from plurum.settings.training import TrainOptions, TrainSettings

if TYPE_CHECKING:
    from plurum.training import TrainedRun

__all__ = ["LabelledData", "train"]

LabelledData = Annotated[
    str,
    typer.Argument(
        help="A folder with one subfolder per class, a folder of MNIST files, a CSV manifest, a MedMNIST .npz "
        "file, or the word [bold]digits[/bold] for scikit-learn's digits.",
        metavar="DATA",
    ),
]


@with_options
def train(
    data: LabelledData,
    settings: TrainSettings,
    out: Annotated[Path, typer.Option(help="Folder of the run: new, empty, or a run to resume.", metavar="RUN")],
    options: TrainOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print the members' metadata as JSON.")] = False,
) -> None:
    """Train one member per --arch, on the same images and splits.

    Run the same command again to resume an interrupted training.

    [bold]Examples[/bold]

      plurum train digits --arch resnet10t --arch regnetx_002 --out runs/digits

      plurum train tiles/ --arch resnet18 --arch efficientnet_b0 --arch densenet121 --flip --rotate 180 --out runs/tiles

      plurum train tiles/ --arch resnet18 --seeds 3 --jobs 3 --out runs/seeds

      plurum train tiles/ --arch resnet18 --snapshots 4 --epochs 40 --out runs/snapshots

      plurum train tiles/ --arch resnet18 --folds 5 --certification 0.2 --out runs/folds

      torchrun --nproc-per-node 4 -m plurum train tiles/ --arch convnext_tiny --pretrained --out runs/tiles
    """
    from plurum.run import Run

    # PyTorch takes seconds to import.
    Run(out).claim()
    from plurum.training import train_run

    try:
        training = train_run(data, settings, out, options)
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; run the same command again to resume\n")
        raise typer.Exit(130) from None
    if not training.is_first:
        return
    if as_json:
        members = [member.model_dump(mode="json") for member in training.members]
        sys.stdout.write(json.dumps({"run": str(out), "members": members, "reused": training.reused}) + "\n")
    else:
        _print(training, out, "images of each member's own fold" if settings.folds else "validation images")


def _print(training: TrainedRun, out: Path, scored_on: str) -> None:
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.run import Run
    from plurum.training.data.report import read_data_report, report_lines

    for line in report_lines(read_data_report(Run(out))):
        typer.echo(line)
    title = escape(f"{out}: scores on {scored_on}")
    columns = ("member", "arch", "precision", "parameters", "best epoch", "accuracy", "NLL")
    table = new_table(*columns, left=3, title=title, box=SIMPLE)
    for member in training.members:
        scores = member.validation
        best = f"{member.best_epoch} of {member.epochs}"
        figures = () if scores is None else (f"{scores.accuracy:.4f}", f"{scores.nll:.4f}")
        table.add_row(member.name, member.arch, member.precision, f"{member.parameters:,}", best, *figures)
    show_table(table)
    if training.reused:
        typer.echo(f"reused from an earlier run: {', '.join(training.reused)}")
    typer.echo(f"next: plurum fit {out}")
