"""Measure the cost of the voter's metrics: the same repository served with them and without.

    python -m plurum.benchmarks.claims.metrics_cost

Measured, in one run on one machine: `ensemble_pixels` of two servers at once, which differ only in that the voter of
one counts nothing. Twice as many clients as there are cores send requests of one image over gRPC to one server, then to
the other.

    images/s        images per second, as the clients see it
    total           processor time per image of all processes of the server, ms
    counting        processor time per image of Triton itself and of the voter's process, ms: members do not count

Turns are short, and each turn of one server stands beside one of the other. Figures are medians over turns; differences
are medians over pairs, with 95 % intervals (of order statistics: a disturbed turn is one of many). The difference of
`counting` is relative to `total`: the fraction of the machine that counting takes, and so of the throughput where
processors limit it; other work on the machine disturbs it least. Not measured: a client that reads the metrics page,
which Triton serves.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.serving import Server, usable_cores
from plurum.serving.triton.metrics import count_responses

__all__ = ["Figures", "difference", "metrics_cost", "without_metrics"]

_MODEL, _ON, _OFF = "ensemble_pixels", "on", "off"
_RATE, _TOTAL, _COUNTING = "images/s", "total", "counting"
_NOTHING = '''\
"""Counts nothing."""


class VoterMetrics:
    def __init__(self, folder):
        pass

    def observe(self, predictions, counted):
        pass

    def close(self):
        pass
'''
_LAST_COUNT_S = 1.2
# By figure and side, a value for each turn.
Figures = dict[str, dict[str, list[float]]]


def metrics_cost(
    work: command.WorkFolder = Path("runs/benchmark"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    turns: Annotated[int, typer.Option(min=6, help="Number of turns of each server.")] = 40,
    seconds: command.Seconds = 2.0,
) -> None:
    """Measure the cost of counting: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        repository = random_repository(work, arch, size, 16, say, form="chain")
        off = without_metrics(repository, work / "model_repository_without_metrics")
        say("starting two servers")
        with server_of(repository) as one, server_of(off) as other:
            figures = _measure({_ON: one, _OFF: other}, random_pixels(size, size), turns, seconds)
    differences = {figure: difference(figures, figure) for figure in figures}
    report = {"percent": differences, "figures": figures, "members": arch, "size": size, "seconds": seconds}
    command.print_report(report, state, _table(figures, differences))


def without_metrics(repository: Path, out: Path) -> Path:
    """Copy a repository to `out`, replacing what is there, with a voter that counts nothing; return `out`."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(repository, out)
    (out / "voter" / "1" / "metrics.py").write_text(_NOTHING, encoding="utf-8")
    return out


def difference(figures: Figures, figure: str) -> dict[str, float]:
    """Return by how many percent `figure` is larger with metrics than without, with its 95 % interval.

    The percentage is relative to the figure without metrics, that of `counting` to `total` without metrics.
    """
    from scipy.stats import quantile_test

    sides, whole = figures[figure], figures[_TOTAL if figure == _COUNTING else figure][_OFF]
    percents = [100 * (on - off) / all_ for on, off, all_ in zip(sides[_ON], sides[_OFF], whole, strict=True)]
    interval = quantile_test(percents, p=0.5).confidence_interval(0.95)
    found = {"median": statistics.median(percents), "low": interval.low, "high": interval.high}
    return {name: round(float(value), 3) for name, value in found.items()}


def _measure(servers: dict[str, Server], pixels: npt.NDArray[np.uint8], turns: int, seconds: float) -> Figures:
    clients = 2 * usable_cores()
    for server in servers.values():
        pixel_rate(server.urls.grpc, _MODEL, pixels, clients, min(1.0, seconds))
    figures: Figures = {figure: {side: [] for side in servers} for figure in (_RATE, _TOTAL, _COUNTING)}
    for turn in range(turns):
        # The second side finds a warmer machine, or a busier one.
        for side in sorted(servers, reverse=bool(turn % 2)):
            server = servers[side]
            before, images = _processor_ms(server), count_responses(server.urls.metrics, [_MODEL], timeout_s=10)
            figures[_RATE][side].append(pixel_rate(server.urls.grpc, _MODEL, pixels, clients, seconds))
            # The voter counts the last responses a little later; they belong to this turn.
            time.sleep(_LAST_COUNT_S)
            images = count_responses(server.urls.metrics, [_MODEL], timeout_s=10) - images
            for figure, spent in _processor_ms(server).items():
                figures[figure][side].append((spent - before[figure]) / images)
    return figures


def _processor_ms(server: Server) -> dict[str, float]:
    """Return the processor time that the server's processes have used so far, ms."""
    spent = {process: _process_ms(process) for process in server.processes()}
    members = {process for process, model in server.stubs().items() if model != "voter"}
    return {_TOTAL: sum(spent.values()), _COUNTING: sum(spent[process] for process in set(spent) - members)}


def _process_ms(process: int) -> float:
    """Return the processor time of a process, summed over its running threads; it is exact, unlike utime's ticks."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e6


def _table(figures: Figures, differences: dict[str, dict[str, float]]) -> Table:
    table = Table("", "with metrics", "without", "difference, %", "95 % interval", title="medians over turns")
    for figure, sides in figures.items():
        on, off = (f"{statistics.median(sides[side]):.3f}" for side in (_ON, _OFF))
        one = differences[figure]
        table.add_row(figure, on, off, f"{one['median']:+.2f}", f"{one['low']:+.2f} to {one['high']:+.2f}")
    return table


if __name__ == "__main__":
    command.run_as_program(metrics_cost)
