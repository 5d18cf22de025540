"""Measure how the cost of a prediction grows with members, classes, the size of images, and clients.

    python -m plurum.benchmarks.claims.growth --out runs/growth

One quantity grows at a time while the others stay: three members, two classes, 64 x 64 pixels, eight clients. Measured
at each point: images per second through `ensemble` (JPEG input) over gRPC; latency; and, from Triton's statistics of
the same requests, how long instances computed per image, by part.

All servers of an axis start and are paused, except the one whose turn it is, in an order that changes; figures are
medians over rounds. All members are of the smallest architecture that timm has, so that everything besides the members'
computing shows; with members of a usual size, decoding and vote are a far smaller fraction. Not measured: a network,
other architectures, a busy machine (the report states the load average).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.growth.plots import plot_from_growth
from plurum.benchmarks.claims.growth.points import ARCH, AXES, measure_growth
from plurum.benchmarks.claims.growth.result import Axis, GrowthResult, GrowthTurn, csv_from_growth
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine, versions
from plurum.errors import SettingsError

__all__ = ["growth"]

_FILES = ("growth.json", "growth.csv", "growth.png")


def growth(
    out: Annotated[Path, typer.Option(help="Folder for results, written atomically.")] = Path("runs/growth"),
    work: command.WorkFolder = Path("runs/growth-work"),
    axis: Annotated[list[str] | None, typer.Option(help="Only this axis; repeat for more.", show_default="all")] = None,
    rounds: command.Rounds = 3,
    seconds: command.Seconds = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="Measure only the ends of each axis.")] = False,
) -> None:
    """Measure how cost grows: a table on standard output; growth.json, growth.csv and growth.png in a folder."""
    if unknown := [name for name in axis or () if name not in AXES]:
        raise SettingsError(f"--axis: expected one of {', '.join(AXES)}, got {unknown[0]!r}.")
    command.check_results_folder(out, _FILES)
    command.interrupt_on_sigterm()
    state, turns = machine(), list[GrowthTurn]()
    with command.show_status("members") as say:
        for name, values in AXES.items():
            if not axis or name in axis:
                chosen = (values[0], values[-1]) if quick else values
                turns += measure_growth(name, chosen, work, rounds, seconds, say)
    result = GrowthResult(
        arch=ARCH, turns=tuple(turns), rounds=rounds, seconds=seconds, machine=state, versions=versions()
    )
    texts = (result.model_dump_json(indent=1) + "\n", csv_from_growth(result))
    command.write_results(out, dict(zip(_FILES, (*texts, plot_from_growth(result)), strict=True)))
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
            table.add_row(_words_for(axis, value), *cells)
    Console(width=120).print(table)
    state = result.machine
    typer.echo(f"medians of {result.rounds} turns of {result.seconds:g} s; members: {result.arch}, random weights")
    typer.echo(f"{state['processor']}, {state['cores']} cores; load average before: {state['load_1min']}")


def _words_for(axis: Axis, value: int) -> str:
    named = {"members": "member", "classes": "class", "clients": "client"}
    if axis == "size":
        return f"{value} x {value} pixels"
    return f"{value} {named[axis] if value == 1 else axis}"


if __name__ == "__main__":
    command.run_as_program(growth)
