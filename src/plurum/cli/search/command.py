"""`plurum search`: search for the settings of a training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plurum.cli.options import Given, PatientOptions, patient_names, with_options
from plurum.cli.streams import new_table, show_table
from plurum.cli.train import LabelledData
from plurum.settings.options import settings_from
from plurum.settings.search import FIXED_FIELDS, SearchSettings
from plurum.settings.training import TrainSettings

if TYPE_CHECKING:
    from plurum.training.search.trials import SearchResult

__all__ = ["search"]

# Trials in the printed table; the report has all.
_SHOWN = 5


@with_options
def search(
    data: LabelledData,
    search_options: SearchSettings,
    out: Annotated[Path, typer.Option(help="Folder of the study: new, empty, or a study to resume.", metavar="STUDY")],
    training_options: Annotated[dict[str, Any], Given(TrainSettings, FIXED_FIELDS)],
    patients: PatientOptions,
) -> None:
    """Search for the architecture, learning rate, weight decay and augmentation with the lowest validation NLL.

    Each trial trains one member; bad ones end early. Writes a report, and prints the command that trains the best. Run
    the same command again to resume an interrupted search.

    [bold]Examples[/bold]

      plurum search digits --arch resnet10t --arch regnetx_002 --epochs 8 --trials 20 --out studies/digits

      plurum search tiles/ --arch resnet18 --flip --rotate 180 --minutes 120 --out studies/tiles
    """
    training = settings_from(TrainSettings, **training_options)
    # PyTorch takes seconds to import.
    from plurum.progress import show_status
    from plurum.training.search.study import search_settings

    try:
        with show_status("searching") as say:
            result = search_settings(data, training, search_options, out, say, patient_names(patients))
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; run the same command again to resume\n")
        raise typer.Exit(130) from None
    _show(result, out)


def _show(result: SearchResult, out: Path) -> None:
    table = new_table("architecture", "augmentation", "trial", "learning rate", "weight decay", "NLL", left=2)
    complete = [trial for trial in result.trials if trial.state == "complete"]
    for trial in sorted(complete, key=lambda trial: trial.nll or 0.0)[:_SHOWN]:
        figures = (f"{trial.learning_rate:.2g}", f"{trial.weight_decay:.2g}", f"{trial.nll:.4f}")
        table.add_row(trial.arch, trial.augmentation, str(trial.number), *figures)
    show_table(table)
    pruned = len(result.trials) - len(complete)
    typer.echo(f"{len(result.trials)} trials, {pruned} of them pruned; report: {out / 'search.html'}")
    typer.echo(f"next: {result.command} --out RUN")
