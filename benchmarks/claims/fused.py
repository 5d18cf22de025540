"""The fused graph beside the chain: how long one client waits for one answer.

    python -m plurum.benchmarks.claims.fused

Measured, of one server in one run: milliseconds per answer of `ensemble_pixels` (a model per member, then the voter)
and of `ensemble_fused` (members and vote in one graph, then its labels), each asked over gRPC by one client, one image
a request. Both get an uncounted warm-up, then turns in an order that changes; figures are medians over rounds. Not
measured: many clients, for whom the chain has more instances; accuracy (weights are random); a busy machine (the load
average is printed).
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import Server, ServerSettings

__all__ = ["fused"]

_ARCHS = ("resnet18", "efficientnet_b0", "densenet121")
_CHAIN, _FUSED = "ensemble_pixels", "ensemble_fused"


def fused(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/benchmark"),
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each gets.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 4.0,
) -> None:
    """Measure both ways to ask the same members: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        repository = random_repository(work, arch, size, 16, status.update, fused=True)
        state = machine()
        pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
            cases: dict[str, Case] = {
                model: partial(pixel_rate, server.urls.grpc, model, pixels, 1) for model in (_CHAIN, _FUSED)
            }
            rates = measure(cases, rounds, seconds, status.update)
    latencies = {model: [1000 / rate for rate in turns] for model, turns in rates.items()}
    medians = {model: statistics.median(turns) for model, turns in latencies.items()}
    ratio = medians[_CHAIN] / medians[_FUSED]
    table = Table("", "ms per answer", "lowest", "highest", title="one client, medians over rounds")
    for model, turns in latencies.items():
        table.add_row(model, *(f"{value:.2f}" for value in (medians[model], min(turns), max(turns))))
    console.print(table)
    console.print(f"the chain takes [bold]{ratio:.2f}[/bold] times as long as the fused graph")
    result = {"ratio": round(ratio, 4), "members": arch, "size": size, "latency_ms": latencies}
    typer.echo(json.dumps({**result, "machine": state, "versions": versions()}))


if __name__ == "__main__":
    typer.run(fused)
