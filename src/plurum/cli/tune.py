"""`plurum tune`: the fastest way to serve a repository on this machine."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plurum.benchmarks.tune.result import TuneResult

__all__ = ["tune"]


def tune(  # noqa: PLR0913, PLR0917 - one parameter per option
    repository: Annotated[
        Path,
        typer.Argument(
            help="A model repository, as `plurum export` writes it; for a GPU, with its plans.", metavar="REPO"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the tuned repository goes, whole or not at all.", metavar="TUNED")],
    run: Annotated[
        Path | None,
        typer.Option(help="What REPO was exported from: tries bf16 and int8 too, each through export's gate."),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="What 99% of the answers must not take longer than [dim]\\[only throughput counts][/dim]."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Who is asked: ensemble (encoded images) or ensemble_pixels (decoded ones).")
    ] = "ensemble",
    clients: Annotated[
        str,
        typer.Option(help="Loads in requests in flight, as `4,8` [dim]\\[4 a core; with a latency fewer too][/dim]."),
    ] = "",
    images: Annotated[
        Path | None, typer.Option(help="A folder with images to send [dim]\\[synthetic JPEGs][/dim].")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the first, shortest turns.")] = 2.0,
    turns: Annotated[int, typer.Option(help="Of REPO and TUNED side by side at the end.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that was measured as JSON.")] = False,
) -> None:
    """Find the fastest way to serve a repository on this machine: form, instances, threads, backend, batching.

    Every way is served and measured as a whole, under load and beside REPO as it is; the best third gets longer turns,
    until one is left. TUNED holds every figure in tuning.json and tuning.csv, drawn in tuning.png. The same command
    again goes on where it was interrupted.

    [bold]Examples[/bold]

      plurum tune runs/digits/model_repository --out runs/digits/tuned

      plurum tune REPO --out TUNED --latency-ms 200 --images scans/

      plurum tune REPO --out TUNED --run runs/digits && plurum serve TUNED
    """
    from plurum.errors import needs_extra

    with needs_extra("all", "matplotlib", "onnx", "onnxruntime", "torch", "tritonclient.grpc"):
        from plurum.benchmarks.tune.tuning import TuneSettings
        from plurum.benchmarks.tune.tuning import tune as tuned
    from rich.console import Console

    from plurum.run import Run
    from plurum.training import settings_from

    settings = settings_from(
        TuneSettings,
        model=model,
        latency_ms=latency_ms,
        clients=_numbers(clients),
        seconds=seconds,
        turns=turns,
        images=images,
    )
    # As Ctrl-C: what was started is ended, what was begun is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Console(stderr=True).status("tuning") as status:
            result = tuned(repository, out, None if run is None else Run(run), settings, status.update)
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; the same command goes on where it was\n")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
    else:
        _show(result, out)


def _numbers(text: str) -> tuple[int, ...]:
    from plurum.errors import SettingsError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise SettingsError(f"--clients {text}: whole numbers above 0 with commas between them are expected")
    return tuple(map(int, parts))


def _show(result: TuneResult, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: there a row is a line, however long.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    tried = Table("", "turns of s", "images/s", "p99 ms", "over REPO's", box=None)
    final = Table("at the end", "in flight", "images/s", "p50 ms", "p99 ms", box=None)
    for column in (*tried.columns[1:], *final.columns[1:]):
        column.justify = "right"
    for stage in dict.fromkeys(trial.stage for trial in result.trials):
        tried.add_row(f"[bold]{stage}[/bold]")
        # Each variant's longest turn, which is its last.
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
    console.print(tried, soft_wrap=True)
    console.print(final, soft_wrap=True)
    for note in result.notes:
        typer.echo(note)
    typer.echo(f"wanted: {result.objective}; sent: {result.images}")
    typer.echo(f"chosen: {result.reason}")
    typer.echo(f"serve it with: plurum serve {out}")
