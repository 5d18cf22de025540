"""`plurum distill`: train a student that imitates the vote of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plurum.cli.options import Given, with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.distilling import STUDENT_FIELDS, DistillSettings
from plurum.settings.training import TrainSettings

if TYPE_CHECKING:
    from plurum.training import DistillationReport

__all__ = ["distill"]

_TRAINING = Given(TrainSettings, STUDENT_FIELDS, dict.fromkeys(STUDENT_FIELDS, "as RUN"), panel="Training")


@with_options
def distill(
    run: Annotated[Path, typer.Argument(help="A run fitted by `plurum fit`.", metavar="RUN")],
    settings: DistillSettings,
    out: Annotated[
        Path, typer.Option(help="Folder of the student's run: new, empty, or one to resume.", metavar="RUN2")
    ],
    training: Annotated[dict[str, Any], _TRAINING],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train one small network, a student, to imitate the vote of RUN on its training images.

    Scores it on test images beside the vote, and beside the same architecture trained on labels alone for as many
    steps. RUN2 is a run like any other: fit, export and serve it. Run the same command again to resume an interrupted
    training.

    [bold]Examples[/bold]

      plurum distill runs/tiles --arch mobilenetv3_small_100 --out runs/student

      plurum distill runs/tiles --arch mobilenetv3_small_100 --epochs 100 --mixup 0.2 --out runs/patient

      plurum distill runs/tiles --arch mobilenetv3_small_100 --unlabelled scans/ --add student --out runs/student
    """
    from plurum.run import Run

    # PyTorch takes seconds to import.
    Run(run).ensemble()
    Run(out).claim()
    from plurum.training import distill_run

    try:
        report = distill_run(run, settings, out, training)
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; run the same command again to resume\n")
        raise typer.Exit(130) from None
    if as_json:
        write_json(report)
    else:
        _show(report, run, out)


def _show(report: DistillationReport, run: Path, out: Path) -> None:
    from plurum.training.distilling.report import report_lines

    table = new_table("on test images", "multiply–adds", "accuracy", "NLL")
    student, vote = (f"{report.multiply_adds[name] / 1e6:,.1f} M" for name in ("student", "vote"))
    rows = [("vote", vote, report.vote), (f"student {report.member}", student, report.student)]
    if report.labels is not None:
        rows.append((f"{report.member} on labels", student, report.labels))
    for name, work, scores in rows:
        table.add_row(name, work, f"{scores.accuracy:.4f}", f"{scores.nll:.4f}")
    show_table(table, *report_lines(report))
    if report.added is not None:
        typer.echo(f"added to {run} as {report.added}; next: plurum fit {run} --cascade")
    typer.echo(f"next: plurum fit {out}")
