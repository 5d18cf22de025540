"""Measure where the processor time of an image goes that a cascade settles in its first stage: graph, decoding, rest.

    python -m plurum.benchmarks.claims.cascades.overhead
    python -m plurum.benchmarks.claims.cascades.overhead --other OTHER/src

Clients send JPEGs over HTTP to `ensemble`, whose first stage is an INT8 member on OpenVINO, with random weights. The
table has the processor time of each process of `plurum serve`, in ms per image, medians over turns. Beside them are the
stage's graph alone and the decoding alone, in this process. What is left is Triton's and Plurum's own work.

With `--other`, a checkout of another version serves the same repository, and both take turns. The difference of all
processes together is the median over pairs of turns, in percent, with a 95 % interval of order statistics.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import plurum
from plurum.benchmarks.claims.cascades.cost import repository_with_stage
from plurum.benchmarks.claims.images.decoding import check_sources, median_difference
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import closed_loop, requests_of
from plurum.benchmarks.tools.machine import processor_s
from plurum.benchmarks.tools.requests import coloured_jpegs, decode_pixels
from plurum.benchmarks.tools.servers import PlurumProcess, roles_of
from plurum.spec import ImageSpec, read_ensemble

__all__ = ["overhead"]

_THIS, _OTHER = "this", "other"
_CLIENTS, _ALONE = 8, 100
# Processor time per image, ms, by role.
Spent = dict[str, float]


def overhead(
    work: command.WorkFolder = Path("runs/cascade_cost"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    other: Annotated[Path | None, typer.Option(help="Folder src of another version.", metavar="OTHER/src")] = None,
    turns: Annotated[int, typer.Option(min=6, help="Number of turns of each version.")] = 12,
    seconds: command.Seconds = 3.0,
) -> None:
    """Measure the time around the graph: a table on standard error, one line of JSON on standard output."""
    sources = {_THIS: Path(plurum.__file__).parents[1]}
    if other is not None:
        check_sources(other)
        sources[_OTHER] = other
    with command.measurement("members") as (say, state):
        repository = repository_with_stage(work, arch, size, say)
        spec = read_ensemble(repository / "ensemble.json").image
        found = _turns(repository, spec, sources, turns, seconds, say)
        alone = _alone(repository, spec)
    totals = {side: [sum(spent.values()) for spent in by_turn] for side, by_turn in found.items()}
    medians = {side: _medians(by_turn) for side, by_turn in found.items()}
    report: dict[str, Any] = {"ms_per_image": medians, "alone_ms": alone, "total_ms": totals, "members": arch}
    if other is not None:
        report["percent"] = median_difference(totals[_THIS], totals[_OTHER])
    command.print_report(report, state, _table(medians, totals, alone, report.get("percent")))


def _turns(
    repository: Path, spec: ImageSpec, sources: dict[str, Path], turns: int, seconds: float, progress: command.Say
) -> dict[str, list[Spent]]:
    """Return what each process spent per image, by version and turn."""
    requests = requests_of(coloured_jpegs(spec.height, spec.width), spec, "ensemble", "HTTP")
    found: dict[str, list[Spent]] = {side: [] for side in sources}
    with ExitStack() as stack:
        servers = {
            side: stack.enter_context(
                PlurumProcess("serve", repository, environment={**os.environ, "PYTHONPATH": str(source.resolve())})
            )
            for side, source in sources.items()
        }
        for server in servers.values():
            closed_loop(server.urls["http"], requests, _CLIENTS, min(1.0, seconds))
        for turn in range(turns):
            progress(f"turn {turn + 1} of {turns}")
            for side in sorted(sources, reverse=bool(turn % 2)):
                found[side].append(_spent(servers[side], requests, seconds))
    return found


def _spent(server: PlurumProcess, requests: Sequence[bytes], seconds: float) -> Spent:
    """Return the processor time per image of each role, ms, under load."""
    roles = roles_of(server)
    before = {process: processor_s(process) for process in roles}
    images = closed_loop(server.urls["http"], requests, _CLIENTS, seconds).requests + _CLIENTS
    spent = dict.fromkeys(roles.values(), 0.0)
    for process, role in roles.items():
        spent[role] += 1000 * (processor_s(process) - before[process]) / images
    return spent


def _alone(repository: Path, spec: ImageSpec) -> Spent:
    """Return the processor time of the first stage's graph and of decoding, ms per image."""
    from plurum.onnx_graphs.sessions import openvino_stage

    (image,) = coloured_jpegs(spec.height, spec.width, 1)
    stage, pixels = openvino_stage(repository / "fused" / "1" / "stage_0.onnx", 1), decode_pixels(image, spec)
    return {
        "graph of the first stage": _time(lambda: stage({"PIXELS": pixels[None]})),
        "decoding": _time(lambda: decode_pixels(image, spec)),
    }


def _time(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_ALONE):
        start = time.process_time_ns()
        run()
        times.append((time.process_time_ns() - start) / 1e6)
    return statistics.median(times)


def _medians(by_turn: list[Spent]) -> Spent:
    return {role: statistics.median(spent[role] for spent in by_turn) for role in by_turn[0]}


def _table(
    medians: dict[str, Spent], totals: dict[str, list[float]], alone: Spent, percent: Sequence[float] | None
) -> Table:
    title = "processor time, ms per image"
    if percent is not None:
        title += "; this version {:+.2f} % ({:+.2f} to {:+.2f})".format(*percent)
    table = command.new_table("", *medians, title=title)
    for role in medians[_THIS]:
        table.add_row(role, *(f"{spent.get(role, 0):.3f}" for spent in medians.values()))
    table.add_row("all", *(f"{statistics.median(turns):.3f}" for turns in totals.values()))
    for name, ms in alone.items():
        table.add_row(f"{name}, alone", f"{ms:.3f}")
    return table


if __name__ == "__main__":
    command.run_as_program(overhead)
