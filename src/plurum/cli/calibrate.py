"""`plurum calibrate`: calibrate a fitted run on the labelled images of a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.calibration import CalibrateSettings

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.training import CalibrationReport

__all__ = ["calibrate"]


@with_options
def calibrate(
    run: Annotated[Path, typer.Argument(help="A run fitted by `plurum fit`.", metavar="RUN")],
    settings: CalibrateSettings,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full report as JSON.")] = False,
) -> None:
    """Calibrate a run's vote on the labelled images of a site, and write RUN/sites/SITE/ensemble.json.

    Members, their weights and RUN/ensemble.json stay. Temperature, class offsets, prediction sets, operating point and
    review follow the site's images as far as cross-validation shows a gain. Earlier promises are void at the site.

    [bold]Examples[/bold]

      plurum calibrate runs/tiles --on site.csv

      plurum calibrate runs/tiles --on corrections.csv --name north

      plurum export runs/tiles --site north
    """
    from plurum.files import write_bytes
    from plurum.training import calibrate_run
    from plurum.training.calibration.plots import plot_from_calibration

    report, folder = calibrate_run(run, settings), run / "sites" / settings.site
    write_bytes(folder / "calibration.png", plot_from_calibration(report))
    if as_json:
        write_json(report)
        return
    show_table(
        _table(report),
        *_lines(report),
        f"report: {folder / 'calibration.json'}, plot: {folder / 'calibration.png'}",
        f"next: plurum export {run} --site {settings.site}",
    )


def _table(report: CalibrationReport) -> Table:
    from rich.box import SIMPLE

    from plurum.sentences import figure_text
    from plurum.training.statistics.metrics import METRICS
    from plurum.training.statistics.wording import difference_text

    table = new_table("", "before", "after", "change", title="on the site's images, by cross-validation", box=SIMPLE)
    for name, change in report.changes.items():
        cells = figure_text(change.before), figure_text(change.after), difference_text(change.difference)
        table.add_row(METRICS[name].title, *cells)
    return table


def _lines(report: CalibrationReport) -> list[str]:
    """Return the results that the table does not contain."""
    from plurum.sentences import percent_text

    site, reviewed = report.ensemble.site, report.reviewed
    counts = ", ".join(f"{count:,} of {name}" for name, count in report.by_class.items())
    lines = [f"site: {site.images:,} images of {site.patients:,} patients: {counts}"] if site else []
    lines.append(_correction_line(report))
    for when, figures in (report.decisions or {}).items():
        lines.append(
            f"operating point, {when}: sensitivity {percent_text(figures.sensitivity)}, "
            f"specificity {percent_text(figures.specificity)}"
        )
    return [
        *lines,
        *report.lines,
        f"review: {reviewed['after']:.1%} of these predictions (before: {reviewed['before']:.1%})",
    ]


def _correction_line(report: CalibrationReport) -> str:
    voting, site = report.ensemble.voting, report.ensemble.site
    if not report.is_changed or site is None or site.strength is None:
        return "probabilities: no gain found, so temperature and class offsets stay"
    ratios = ", ".join(f"{name} x{ratio:.2f}" for name, ratio in _ratios(report).items())
    return (
        f"probabilities: temperature {voting.temperature:.3f}, classes {ratios}, shrunk towards the fit with strength "
        f"{site.strength:.1f}"
    )


def _ratios(report: CalibrationReport) -> dict[str, float]:
    return dict(zip(report.ensemble.classes, report.ensemble.voting.prior_ratio or (), strict=True))
