"""Compare served throughput with in-process throughput of the same members: what does serving cost?

    python -m plurum.benchmarks.claims.throughput

Measured, on one machine in one run: images per second through `ensemble_pixels` of a server as `plurum serve` starts
it, with 1 to 16 clients on this machine that send one image per request over gRPC; and images per second of the same
ONNX files in a plain loop in this process, one image after the other, with 1 thread and with one thread per core. The
ratio is the best median of the first over the best median of the second. For comparison, outside the ratio: one image
per core (a loop with 1 thread on every core), and loops over batches.

Every case gets a warm-up that does not count, then a turn in every round, in an order that changes; figures are medians
over rounds. Not measured: decoding of images, a network, accuracy (weights are random), first requests, a busy machine
(the report states the load average).
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.local import onnx_runner, rate_in_threads, rate_of, run_in_turn
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import usable_cores

__all__ = ["compare_best", "throughput"]

_CLIENTS = (1, 2, 4, 8, 16)
_BATCHES = (4, 8)
_SERVED, _LOOP = "served", "in-process loop"


def throughput(
    work: command.WorkFolder = Path("runs/benchmark"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Largest batch of the repository, images.")] = 16,
    rounds: command.Rounds = 3,
    seconds: command.Seconds = 4.0,
) -> None:
    """Measure what serving costs: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        repository = random_repository(work, arch, size, max_batch_size, say)
        say("starting the server")
        with server_of(repository) as server:
            graphs = [repository / name / "1" / "model.onnx" for name in arch]
            cases = _cases(graphs, server.urls.grpc, random_pixels(size, size))
            figures = measure(cases, rounds, seconds, say)
    best = compare_best(figures)
    command.print_report(
        {**best, "members": arch, "size": size, "rounds": rounds, "seconds": seconds, "images_per_s": figures},
        state,
        command.table_of_rounds(figures, "images/s"),
        f"{best['served']} over {best['local']}: [bold]{best['ratio']:.3f}[/bold]",
    )


def compare_best(figures: dict[str, list[float]]) -> dict[str, str | float]:
    """Return the best served case, the best in-process loop, and the ratio of their medians."""
    medians = {name: statistics.median(turns) for name, turns in figures.items()}
    served, local = (
        max((name for name in medians if name.startswith(kind)), key=medians.__getitem__) for kind in (_SERVED, _LOOP)
    )
    return {"ratio": round(medians[served] / medians[local], 4), "served": served, "local": local}


def _cases(graphs: list[Path], url: str, pixels: npt.NDArray[np.uint8]) -> dict[str, Case]:
    cores = usable_cores()
    single, all_cores = (run_in_turn([onnx_runner(graph, threads) for graph in graphs]) for threads in (1, cores))
    cases: dict[str, Case] = {f"{_LOOP}, 1 thread": partial(rate_of, single, pixels)}
    if cores > 1:
        cases[f"{_LOOP}, {cores} threads"] = partial(rate_of, all_cores, pixels)
        cases["in-process, one image a core"] = partial(rate_in_threads, [single] * cores, pixels)
    for batch in _BATCHES:
        cases[f"in-process, batches of {batch}"] = partial(rate_of, all_cores, np.repeat(pixels, batch, axis=0))
    for clients in _CLIENTS:
        cases[f"{_SERVED}, {clients} clients"] = partial(pixel_rate, url, "ensemble_pixels", pixels, clients)
    return cases


if __name__ == "__main__":
    command.run_as_program(throughput)
