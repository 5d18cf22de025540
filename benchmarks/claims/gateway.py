"""Measure what the gateway costs: the same JPEG sent to Triton directly and through `plurum gateway`, in one run.

    python -m plurum.benchmarks.claims.gateway

Measured, with one server and one gateway on this machine, over four ways: Triton over gRPC, Triton over HTTP, the
gateway's KServe endpoint, and its /predict.

- Latency, with an ensemble so small that little else is measured: one client sends one request over each way, in an
  order that changes, and again. Figures are medians and 10th percentiles, which a busy machine disturbs less. A
  difference of them is what a way through the gateway adds.
- Images per second of eight clients, with members of a real size: every way gets a warm-up that does not count, then
  turns in an order that changes; ratios are of medians over rounds.
- Processor time per image of those turns, Triton's and the gateway's: what a busy machine disturbs least. Where the
  cores are the limit, throughput depends on their sum.

Clients are coroutines of this process with prepared requests. Not measured: a network, TLS, keys, clients on another
machine: clients, gateway and Triton share the cores. A busy machine makes differences larger (the report states the
load average).
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import closed_loop, open_sender, requests_of
from plurum.benchmarks.tools.machine import processor_s
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.benchmarks.tools.servers import PlurumProcess, server_of
from plurum.benchmarks.tools.turns import Case, in_turns, measure
from plurum.benchmarks.tools.wire import post
from plurum.spec import read_ensemble

__all__ = ["added_ms", "gateway", "ratios"]

_TINY_SIZE, _REAL_SIZE = 64, 224
_GRPC, _HTTP, _INFER, _PREDICT = "Triton, gRPC", "Triton, HTTP", "gateway, infer", "gateway, /predict"
_WAYS = (_GRPC, _HTTP, _INFER, _PREDICT)
# Each way through the gateway beside each direct way.
_PAIRS = tuple(product((_INFER, _PREDICT), (_GRPC, _HTTP)))
_CLIENTS, _WARM_UP = 8, 20


@dataclass(frozen=True)
class _Ways:
    """URL and prepared request of the four ways to one ensemble; process ids of `triton` and of the `gateway`."""

    urls: dict[str, str]
    requests: dict[str, bytes]
    processes: dict[str, list[int]]

    def cpu_ms(self) -> dict[str, float]:
        """Return the processor time that each has used so far, ms."""
        return {name: 1000 * sum(map(processor_s, processes)) for name, processes in self.processes.items()}


def gateway(
    work: command.WorkFolder = Path("runs/benchmark"),
    requests: Annotated[int, typer.Option(min=1, help="Number of requests for latency, per way.")] = 1000,
    rounds: Annotated[int, typer.Option(min=0, help="Turns of each way for throughput; 0 skips throughput.")] = 5,
    seconds: command.Seconds = 4.0,
) -> None:
    """Measure what the gateway adds: a table on standard error, one line of JSON on standard output."""
    report: dict[str, Any] = {}
    with command.measurement("members") as (say, state):
        with _serve(work / "gateway-tiny", command.TINY_ARCHS, _TINY_SIZE, say) as ways:
            say("latency")
            latencies = asyncio.run(_latencies(ways, requests))
        for name, values in latencies.items():
            report[name] = {
                "latency_ms": {way: round(ms, 3) for way, ms in values.items()},
                "added_ms": added_ms(values),
            }
        if rounds:
            with _serve(work / "gateway-real", command.ARCHS, _REAL_SIZE, say) as ways:
                rates, cpu_ms = _rates(ways, rounds, seconds, say)
            report |= {"images_per_s": rates, "throughput_ratio": ratios(rates), "cpu_ms_per_image": cpu_ms}
    command.print_report(report, state, _table(report))


def added_ms(latencies: dict[str, float]) -> dict[str, float]:
    """Return the latency that each way through the gateway adds to each direct way, ms."""
    return {f"{behind} - {direct}": round(latencies[behind] - latencies[direct], 3) for behind, direct in _PAIRS}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return the throughput of each way through the gateway over that of each direct way, of medians over rounds."""
    medians = {way: statistics.median(turns) for way, turns in rates.items()}
    return {f"{behind} / {direct}": round(medians[behind] / medians[direct], 4) for behind, direct in _PAIRS}


@contextmanager
def _serve(work: Path, archs: list[str], size: int, say: command.Say) -> Iterator[_Ways]:
    repository = random_repository(work, archs, size, 16, say)
    spec, (image,) = read_ensemble(repository / "ensemble.json").image, coloured_jpegs(size, size, 1)
    (over_grpc,), (over_http,) = (requests_of([image], spec, "ensemble", over) for over in ("gRPC", "HTTP"))
    with server_of(repository) as server, PlurumProcess("gateway", "--triton", server.urls.grpc) as process:
        url = process.urls["http"]
        yield _Ways(
            {_GRPC: server.urls.grpc, _HTTP: server.urls.http, _INFER: url, _PREDICT: url},
            {_GRPC: over_grpc, _HTTP: over_http, _INFER: over_http, _PREDICT: post("/predict", image)},
            {"triton": server.processes(), "gateway": [process.pid]},
        )


async def _latencies(ways: _Ways, requests: int) -> dict[str, dict[str, float]]:
    """Return the median and the 10th percentile of each way's latency, ms."""
    taken: dict[str, list[float]] = {way: [] for way in _WAYS}
    async with AsyncExitStack() as stack:
        senders = {
            way: await stack.enter_async_context(open_sender(ways.urls[way], [ways.requests[way]])) for way in _WAYS
        }
        for _, way in in_turns(_WAYS, requests + _WARM_UP):
            taken[way].append(1000 * (await senders[way]())[0])
    return {
        name: {way: float(np.percentile(values[_WARM_UP:], share)) for way, values in taken.items()}
        for name, share in {"median": 50, "percentile_10": 10}.items()
    }


def _rates(
    ways: _Ways, rounds: int, seconds: float, say: command.Say
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Return images per second by way and round, and by way the processor time per image, ms."""
    images = dict.fromkeys(_WAYS, 0)
    spent = {way: dict.fromkeys(ways.processes, 0.0) for way in _WAYS}

    def case(way: str, length_s: float) -> float:
        before = ways.cpu_ms()
        figures = closed_loop(ways.urls[way], [ways.requests[way]], _CLIENTS, length_s)
        # Each client's first response takes processor time too.
        images[way] += figures.requests + _CLIENTS
        for name, after in ways.cpu_ms().items():
            spent[way][name] += after - before[name]
        return figures.images_per_s

    cases: dict[str, Case] = {way: partial(case, way) for way in _WAYS}
    rates = measure(cases, rounds, seconds, say)
    return rates, {way: {name: round(ms / images[way], 3) for name, ms in spent[way].items()} for way in _WAYS}


def _table(report: dict[str, Any]) -> Table:
    columns = ("median ms", "10th percentile", "images/s", "Triton's CPU, ms", "gateway's CPU, ms")
    table = command.new_table("", *columns, title="one client, small members; eight clients, real members")
    for way in _WAYS:
        latencies = (f"{report[name]['latency_ms'][way]:.2f}" for name in ("median", "percentile_10"))
        turns = report.get("images_per_s", {}).get(way)
        rate = "" if turns is None else f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})"
        cpu = report.get("cpu_ms_per_image", {}).get(way, {})
        table.add_row(way, *latencies, rate, *(f"{cpu[name]:.2f}" if cpu else "" for name in ("triton", "gateway")))
    return table


if __name__ == "__main__":
    command.run_as_program(gateway)
