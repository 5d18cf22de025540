"""Served throughput over in-process throughput of the same members: what serving costs.

    python -m plurum.benchmarks.claims.throughput

Measured, on one machine in one run: images per second through `ensemble_pixels` of a server that `plurum serve`
would start, asked over gRPC from this machine by 1 to 16 clients, one image a request; and images per second of the
same ONNX files called by this process in a plain loop, one image after the other, with 1 thread and with as many as
there are cores. The ratio is the best median of the first over the best median of the second. For comparison, not
in the ratio: one image a core (a 1-thread loop per core), and loops over batches.

Every case gets an uncounted warm-up, then a turn in every round, in an order that changes; figures are medians over
rounds. Not measured: decoding of images, a network, accuracy (weights are random), first requests, a busy machine
(the load average is printed).
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.local import LocalMembers
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import Server, ServerSettings, usable_cores

__all__ = ["compare", "throughput"]

_ARCHS = ("resnet18", "efficientnet_b0", "densenet121")
_CLIENTS = (1, 2, 4, 8, 16)
_BATCHES = (4, 8)
_SERVED, _LOOP = "served", "in-process loop"


def throughput(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/benchmark"),
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Of the repository.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every case gets.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 4.0,
) -> None:
    """Measure what serving costs: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        repository = random_repository(work, arch, size, max_batch_size, status.update)
        state = machine()
        status.update("starting the server")
        with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
            graphs = [repository / name / "1" / "model.onnx" for name in arch]
            pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
            cases = _cases(graphs, server.urls.grpc, pixels)
            figures = measure(cases, rounds, seconds, status.update)
    report = compare(figures)
    console.print(_table(figures))
    console.print(f"{report['served']} over {report['local']}: [bold]{report['ratio']:.3f}[/bold]")
    result = {"members": arch, "size": size, "rounds": rounds, "seconds": seconds, "images_per_s": figures}
    typer.echo(json.dumps({**report, **result, "machine": state, "versions": versions()}))


def compare(figures: dict[str, list[float]]) -> dict[str, str | float]:
    """Return the best served case, the best in-process loop, and the ratio of their medians."""
    medians = {name: statistics.median(turns) for name, turns in figures.items()}
    served, local = (
        max((name for name in medians if name.startswith(kind)), key=medians.__getitem__) for kind in (_SERVED, _LOOP)
    )
    return {"ratio": round(medians[served] / medians[local], 4), "served": served, "local": local}


def _cases(graphs: list[Path], url: str, pixels: npt.NDArray[np.uint8]) -> dict[str, Case]:
    cores = usable_cores()
    single, all_cores = LocalMembers(graphs, 1), LocalMembers(graphs, cores)
    cases: dict[str, Case] = {f"{_LOOP}, 1 thread": partial(single.loop, pixels)}
    if cores > 1:
        cases[f"{_LOOP}, {cores} threads"] = partial(all_cores.loop, pixels)
        cases["in-process, one image a core"] = partial(single.loops, cores, pixels)
    for batch in _BATCHES:
        cases[f"in-process, batches of {batch}"] = partial(all_cores.loop, np.repeat(pixels, batch, axis=0))
    for clients in _CLIENTS:
        cases[f"{_SERVED}, {clients} clients"] = partial(pixel_rate, url, "ensemble_pixels", pixels, clients)
    return cases


def _table(figures: dict[str, list[float]]) -> Table:
    table = Table("case", "images/s", "lowest", "highest", title="medians over rounds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, turns in figures.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(turns), min(turns), max(turns))))
    return table


if __name__ == "__main__":
    typer.run(throughput)
