"""What the voter's metrics cost: the same repository served with them and without.

    python -m plurum.benchmarks.claims.metrics_cost

Measured, in one run on one machine: `ensemble_pixels` of two servers at once, which differ only in that the voter of
one counts nothing, asked in turns over gRPC by twice as many clients as there are cores, one image a request.

    images/s        what the clients saw
    total           processor time per image of all processes of the server, ms
    counting        likewise, of Triton itself and of the voter's process: members don't count

Turns are short, and each of the one stands beside one of the other. Figures are medians over turns; differences are
medians of the pairs', with 95% intervals (of order statistics: a disturbed turn is one of many). That of `counting` is
given over `total`: the share of the machine that counting takes, and so of the throughput where processors are what
limits it; other work on the machine disturbs it least. Not measured: whoever reads the page, which Triton answers.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.serving import Server, ServerSettings, usable_cores
from plurum.serving.triton.metrics import count_responses

__all__ = ["Turns", "difference", "metrics_cost", "without_metrics"]

_ARCHS = ("resnet18", "efficientnet_b0", "densenet121")
_MODEL, _ON, _OFF = "ensemble_pixels", "on", "off"
_RATE, _TOTAL, _COUNTING = "images/s", "total", "counting"
_NOTHING = '''\
"""Counts nothing."""


def CountedPredictions(*parts):
    return parts


class VoterMetrics:
    def __init__(self, folder):
        pass

    def observe(self, answers):
        pass

    def close(self):
        pass
'''
_LAST_COUNT_S = 1.2
# By figure and side, a value for each turn.
Turns = dict[str, dict[str, list[float]]]


def metrics_cost(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/benchmark"),
    arch: Annotated[list[str], typer.Option(help="A timm architecture; repeat for more.")] = list(_ARCHS),  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Height and width of the images.")] = 224,
    turns: Annotated[int, typer.Option(min=6, help="Turns that each side gets.")] = 40,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 2.0,
) -> None:
    """Measure the cost of counting: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        repository = random_repository(work, arch, size, 16, status.update)
        off = without_metrics(repository, work / "model_repository_without_metrics")
        state = machine()
        pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        settings = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
        status.update("starting two servers")
        with Server(repository, settings) as one, Server(off, settings) as other:
            figures = _measured({_ON: one, _OFF: other}, pixels, turns, seconds)
    differences = {figure: difference(figures, figure) for figure in figures}
    console.print(_table(figures, differences))
    result = {"percent": differences, "figures": figures, "members": arch, "size": size, "seconds": seconds}
    typer.echo(json.dumps({**result, "machine": state, "versions": versions()}))


def without_metrics(repository: Path, out: Path) -> Path:
    """Copy a repository to `out`, replacing what is there, with a voter that counts nothing; return `out`."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(repository, out)
    (out / "voter" / "1" / "metrics.py").write_text(_NOTHING, encoding="utf-8")
    return out


def difference(figures: Turns, figure: str) -> dict[str, float]:
    """Return by how much `figure` is larger with metrics than without, in percent, with its 95% interval.

    Of the figure itself, but for `counting`: of `total`.
    """
    from scipy.stats import quantile_test

    sides, whole = figures[figure], figures[_TOTAL if figure == _COUNTING else figure][_OFF]
    percents = [100 * (on - off) / all_ for on, off, all_ in zip(sides[_ON], sides[_OFF], whole, strict=True)]
    interval = quantile_test(percents, p=0.5).confidence_interval(0.95)
    found = {"median": statistics.median(percents), "low": interval.low, "high": interval.high}
    return {name: round(float(value), 3) for name, value in found.items()}


def _measured(servers: dict[str, Server], pixels: npt.NDArray[np.uint8], turns: int, seconds: float) -> Turns:
    clients = 2 * usable_cores()
    for server in servers.values():
        pixel_rate(server.urls.grpc, _MODEL, pixels, clients, min(1.0, seconds))
    figures: Turns = {figure: {side: [] for side in servers} for figure in (_RATE, _TOTAL, _COUNTING)}
    for turn in range(turns):
        # Whoever comes second has a warmer machine, or a busier one.
        for side in sorted(servers, reverse=bool(turn % 2)):
            server = servers[side]
            before, images = _processor_ms(server), count_responses(server.urls.metrics, [_MODEL], timeout_s=10)
            figures[_RATE][side].append(pixel_rate(server.urls.grpc, _MODEL, pixels, clients, seconds))
            # What is put aside at the end belongs to this turn.
            time.sleep(_LAST_COUNT_S)
            images = count_responses(server.urls.metrics, [_MODEL], timeout_s=10) - images
            for figure, spent in _processor_ms(server).items():
                figures[figure][side].append((spent - before[figure]) / images)
    return figures


def _processor_ms(server: Server) -> dict[str, float]:
    """Return how long processors have been busy with the server's processes until now."""
    spent = {process: _process_ms(process) for process in server.processes()}
    members = {process for process, model in server.stubs().items() if model != "voter"}
    return {_TOTAL: sum(spent.values()), _COUNTING: sum(spent[process] for process in set(spent) - members)}


def _process_ms(process: int) -> float:
    """Return the processor time of a process, of all its threads that live: exact where utime counts whole ticks."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e6


def _table(figures: Turns, differences: dict[str, dict[str, float]]) -> Table:
    table = Table("", "with metrics", "without", "difference, %", "95% interval", title="medians over turns")
    for figure, sides in figures.items():
        on, off = (f"{statistics.median(sides[side]):.3f}" for side in (_ON, _OFF))
        one = differences[figure]
        table.add_row(figure, on, off, f"{one['median']:+.2f}", f"{one['low']:+.2f} to {one['high']:+.2f}")
    return table


if __name__ == "__main__":
    typer.run(metrics_cost)
