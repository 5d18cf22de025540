"""How the cost of an answer grows: with members, classes, the size of images, and clients.

    python -m plurum.benchmarks.claims.growth --out runs/growth

One thing grows at a time while the others stay: three members, two classes, 64 x 64 pixels, eight clients. Measured at
each point: images per second through `ensemble` (JPEG in) asked over gRPC by so many clients; the time of an answer;
and, from Triton's own statistics over the same requests, how long instances computed per image, by part.

The servers of an axis are all started, then paused but for the one whose turn it is, in an order that changes; figures
are medians over rounds. Members are all of the smallest architecture that timm has, so that what is not a member's
computing shows; with members as large as people use, decoding and vote are a far smaller share. Not measured: a
network, other architectures, a busy machine (the load average is printed).
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.growth.plots import plot_from_growth
from plurum.benchmarks.claims.growth.points import ARCH, AXES, measure_growth
from plurum.benchmarks.claims.growth.result import Axis, GrowthResult, TurnOfGrowth, csv_from_growth
from plurum.benchmarks.tools.command import run_as_program
from plurum.benchmarks.tools.machine import machine, versions
from plurum.errors import OutputError, SettingsError
from plurum.files import atomic_folder

__all__ = ["growth"]

_FILES = {"growth.json", "growth.csv", "growth.png"}


def growth(
    out: Annotated[Path, typer.Option(help="Folder for results, written whole or not at all.")] = Path("runs/growth"),
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/growth-work"),
    axis: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every point gets.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="Only the ends of each axis.")] = False,
) -> None:
    """Measure how cost grows: a table on standard output, growth.json, growth.csv and growth.png in a folder."""
    if unknown := [name for name in axis or () if name not in AXES]:
        raise SettingsError(f"--axis {unknown[0]}: none of {', '.join(AXES)}")
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _FILES):
        raise OutputError(f"{out} holds something else than results of growth; name another folder with --out")
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state, turns = machine(), list[TurnOfGrowth]()
    with Console(stderr=True).status("members") as status:
        for name, values in AXES.items():
            if not axis or name in axis:
                wanted = (values[0], values[-1]) if quick else values
                turns += measure_growth(name, wanted, work, rounds, seconds, status.update)
    result = GrowthResult(
        arch=ARCH, turns=tuple(turns), rounds=rounds, seconds=seconds, machine=state, versions=versions()
    )
    picture = plot_from_growth(result)
    with atomic_folder(out) as folder:
        (folder / "growth.json").write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "growth.csv").write_text(csv_from_growth(result), encoding="utf-8")
        (folder / "growth.png").write_bytes(picture)
    _show(result)
    typer.echo(f"result: {out}")


def _show(result: GrowthResult) -> None:
    table = Table("", "images/s", "p50 ms", "ms per image: decoding", "members", "voter", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for axis in result.axes():
        for value in result.values(axis):
            parts = ("decoding", "members", "voter")
            busy = (result.busy_ms(axis, value, part) for part in parts)
            cells = (
                f"{result.rate(axis, value):.1f}",
                f"{result.p50_ms(axis, value):.2f}",
                *(f"{one:.3f}" for one in busy),
            )
            table.add_row(_named(axis, value), *cells)
    Console(width=120).print(table)
    state = result.machine
    typer.echo(f"medians of {result.rounds} turns of {result.seconds:g} s; members: {result.arch}, random weights")
    typer.echo(f"{state['processor']}, {state['cores']} cores; load average before: {state['load_1min']}")


def _named(axis: Axis, value: int) -> str:
    named = {"members": "member", "classes": "class", "clients": "client"}
    if axis == "size":
        return f"{value} x {value} pixels"
    return f"{value} {named[axis] if value == 1 else axis}"


if __name__ == "__main__":
    run_as_program(growth)
