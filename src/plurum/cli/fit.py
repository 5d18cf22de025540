"""`plurum fit`: from members to an ensemble."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.spec import Scores
    from plurum.training import FitReport

__all__ = ["fit"]


def fit(
    run: Annotated[Path, typer.Argument(help="A run that `plurum train` has filled.", metavar="RUN")],
    mode: Annotated[str, typer.Option(help="soft averages probabilities, hard counts winners.")] = "soft",
    alpha: Annotated[float, typer.Option(help="Share of true classes that a prediction set may miss.")] = 0.1,
    risk: Annotated[float, typer.Option(help="Share of wrong answers among those that no person looks at.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found out as JSON.")] = False,
) -> None:
    """Fit how the members vote, on the run's validation images, and write RUN/ensemble.json.

    Members keep equal weights unless others are better beyond chance.

    [bold]Examples[/bold]

      plurum fit runs/digits

      plurum fit runs/tiles --alpha 0.05 --risk 0.005
    """
    from plurum.training import FitSettings, fit_report, settings_from

    report = fit_report(run, settings_from(FitSettings, mode=mode, alpha=alpha, risk=risk))
    if as_json:
        sys.stdout.write(report.model_dump_json() + "\n")
    else:
        _print(report, run)


def _print(report: FitReport, run: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_table(report))
    for line in _lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"next: plurum export {escape(str(run))}", highlight=False, soft_wrap=True)


def _table(report: FitReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("member", box=box.SIMPLE)
    for column in ("weight", "validation accuracy", "NLL", "test accuracy", "NLL"):
        table.add_column(column, justify="right")
    ensemble = report.ensemble
    for member, weight in zip(ensemble.members, ensemble.voting.weights, strict=True):
        scores = report.members[member.name]
        table.add_row(member.name, f"{weight:.3f}", *_cells(scores["validation"]), *_cells(scores["test"]))
    table.add_section()
    table.add_row("ensemble", "", *_cells(ensemble.scores["validation"]), *_cells(ensemble.scores["test"]))
    return table


def _cells(scores: Scores) -> tuple[str, str]:
    return f"{scores.accuracy:.4f}", f"{scores.nll:.4f}"


def _lines(report: FitReport) -> list[str]:
    """Return what the table does not say."""
    ensemble = report.ensemble
    tried = ", ".join(f"{weight:.3f}" for weight in report.weights_tried)
    low, high = report.nll_saved
    if ensemble.voting.mode == "hard":
        weights = "weights: equal, as for every hard vote"
    else:
        taken = "taken" if low > 0 else "not beyond chance, so the weights stay equal"
        weights = f"weights: {tried} would save {low:.4f} to {high:.4f} nats of NLL: {taken}"
    alpha = ensemble.conformal.alpha if ensemble.conformal else 1.0
    reviewed, covered = report.reviewed, report.covered
    lines = [
        weights,
        f"temperature after averaging: {ensemble.voting.temperature:.3f}",
        (
            f"prediction sets: {covered['test']:.1%} of test images have their true class in them "
            f"(wished for: {1 - alpha:.1%})"
        ),
        (
            f"review: below a confidence of {ensemble.review.threshold:.4f}, or with more than one class in the set: "
            f"{reviewed['validation']:.1%} of validation answers, {reviewed['test']:.1%} of test answers"
        ),
    ]
    if not report.beats_best:
        lines.append(f"on test images the ensemble does not beat its best member, {report.best_alone}")
    return lines
