"""`plurum data`: report on labelled images before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plurum.cli.options import Given, PatientOptions, patient_names, with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.cli.train import LabelledData
from plurum.settings.options import settings_from
from plurum.settings.training import TrainSettings

if TYPE_CHECKING:
    from plurum.training.data.report import DataReport, ImageCounts

__all__ = ["data"]


@with_options
def data(
    source: LabelledData,
    options: Annotated[dict[str, Any], Given(TrainSettings, ("window", "tile_size", "max_tiles", "skip_unreadable"))],
    patients: PatientOptions,
    seed: Annotated[int, typer.Option(help="Random seed of the splits.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Plot the counts to this PNG file.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full report as JSON.")] = False,
) -> None:
    """Read all images as `plurum train` would, and report their counts and faults.

    Trains nothing and writes no file other than --plot.

    [bold]Examples[/bold]

      plurum data digits

      plurum data train.csv --tile-size 512 --json

      plurum data scans/ --window 40,400

      plurum data scans/ --window 0.1%,99.9%
    """
    from plurum.training import load_data
    from plurum.training.data.report import data_report, usable_rows
    from plurum.training.data.report_plot import plot_from_data_report
    from plurum.training.data.window_fit import fit_window

    # Architectures are not needed here; the other options are checked as for training.
    settings = settings_from(TrainSettings, archs=("none",), **options)
    images = load_data(
        source, seed, names=patient_names(patients), **{name: getattr(settings, name) for name in options}
    )
    images = fit_window(images, settings.window)
    decoded = images.decode()
    report = data_report(images, decoded)
    if as_json:
        write_json(report)
    else:
        _print(report)
    if plot:
        from plurum.files import write_bytes

        write_bytes(plot, plot_from_data_report(report))
    # After the report, which names every unreadable image.
    usable_rows(images, decoded)


def _print(report: DataReport) -> None:
    from rich.box import SIMPLE
    from rich.markup import escape

    from plurum.training.data.report import report_lines

    table = new_table("class", *report.splits, box=SIMPLE)
    for name, counts in report.counts.items():
        table.add_row(escape(name), *map(_cell, counts.values()))
    table.add_section()
    table.add_row("all", *map(_cell, report.splits.values()))
    show_table(table, *report_lines(report))


def _cell(count: ImageCounts) -> str:
    """Return the number of images, followed by the number of patients if known."""
    return f"{count.images:,} ({count.patients:,})" if count.patients else f"{count.images:,}"
