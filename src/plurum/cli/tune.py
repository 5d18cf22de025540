"""`plurum tune`: find the fastest serving configuration on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.cli.streams import new_table, show_table, write_json
from plurum.settings.benchmarks import TuneSettings

if TYPE_CHECKING:
    from plurum.benchmarks.tune.result import TuneResult

__all__ = ["tune"]


@with_options
def tune(
    repository: Annotated[
        Path,
        typer.Argument(help="Model repository written by `plurum export`; for a GPU, with its plans.", metavar="REPO"),
    ],
    settings: TuneSettings,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the tuned repository, written atomically.", metavar="TUNED")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether tuning is worth it, within two minutes; write nothing.")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Run that REPO was exported from; also tries bf16 and int8, if they pass the parity gate."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all measurements as JSON.")] = False,
) -> None:
    """Find the fastest configuration of a repository on this machine: form, instances, threads, backend, batching.

    Serves and measures every configuration under load, next to the unchanged REPO. The best third is measured longer,
    until one is left. Writes all measurements to TUNED as tuning.json, tuning.csv and tuning.png. Run the same command
    again to resume an interrupted search.

    [bold]Examples[/bold]

      plurum tune runs/digits/model_repository --check

      plurum tune runs/digits/model_repository --out runs/digits/tuned

      plurum tune REPO --out TUNED --latency-ms 200 --images scans/

      plurum tune REPO --out TUNED --run runs/digits && plurum serve TUNED
    """
    from plurum.errors import needs_extra

    with needs_extra("all", "matplotlib", "onnx", "onnxruntime", "torch", "tritonclient.grpc"):
        from plurum.benchmarks.tools.command import interrupt_on_sigterm
        from plurum.benchmarks.tune.tuning import tune as tune_repository
    from plurum.progress import show_status
    from plurum.run import Run

    if out is None or check:
        _check(repository, settings, as_json=as_json, is_asked=check and out is None and run is None)
        return
    interrupt_on_sigterm()
    try:
        with show_status("tuning") as say:
            result = tune_repository(repository, out, None if run is None else Run(run), settings, say)
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; run the same command again to resume\n")
        raise typer.Exit(130) from None
    if as_json:
        write_json(result)
    else:
        _show(result, out)


def _check(repository: Path, settings: TuneSettings, *, as_json: bool, is_asked: bool) -> None:
    """Say whether tuning is worth it.

    Raises:
        SettingsError: the user has given neither `--out` nor `--check`, or `--check` with options of a tuning.
    """
    from rich.console import Console

    from plurum.benchmarks.tools.command import interrupt_on_sigterm
    from plurum.benchmarks.tune.check import check_tuning
    from plurum.errors import SettingsError

    if not is_asked:
        raise SettingsError("--out, --check: expected either --out TUNED, or --check without --out and --run.")
    interrupt_on_sigterm()
    with Console(stderr=True).status("checking") as status:
        found = check_tuning(repository, settings, status.update)
    if as_json:
        write_json(found)
    else:
        typer.echo(str(found))


def _show(result: TuneResult, out: Path) -> None:
    tried = new_table("", "seconds", "images/s", "p99 ms", "vs. REPO")
    final = new_table("final", "in flight", "images/s", "p50 ms", "p99 ms")
    for stage in dict.fromkeys(trial.stage for trial in result.trials):
        tried.add_row(f"[bold]{stage}[/bold]")
        # The last measurement of a variant is its longest.
        last = {trial.variant.model_dump_json(): trial for trial in result.trials if trial.stage == stage}
        for trial in sorted(last.values(), key=lambda one: one.seconds, reverse=True):
            if trial.error:
                tried.add_row(f"  {trial.variant}: {trial.error}")
                continue
            point = result.objective.best(trial.points)
            figures = (f"{point.images_per_s:.1f}", f"{point.p99_ms:.0f}", f"{trial.ratio(result.objective):.2f}")
            tried.add_row(f"  {trial.variant}", f"{trial.seconds:g}", *figures)
    for side in ("before", "after"):
        for point in result.medians(side):
            figures = (f"{point.images_per_s:.1f}", f"{point.p50_ms:.1f}", f"{point.p99_ms:.1f}")
            final.add_row(side, str(point.clients), *figures)
    show_table(tried)
    show_table(final)
    for note in result.notes:
        typer.echo(note)
    typer.echo(f"target: {result.objective}; sent: {result.images}")
    typer.echo(f"chosen: {result.reason}")
    typer.echo(f"serve it with: plurum serve {out}")
