"""Compare the fused graph with the chain: how long does one client wait for one prediction?

    python -m plurum.benchmarks.claims.fused

Measured, on one server in one run: milliseconds per prediction of `ensemble_pixels` (a model per member, then the
voter) and of `ensemble_fused` (members and vote in one graph, then its labels). One client sends one image per request
over gRPC. Both get a warm-up that does not count, then turns in an order that changes; figures are medians over rounds.

Not measured: many clients, for whom the chain has more instances; accuracy (weights are random); a busy machine (the
report states the load average).
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import measure

__all__ = ["fused"]

_CHAIN, _FUSED = "ensemble_pixels", "ensemble_fused"


def fused(
    work: command.WorkFolder = Path("runs/benchmark"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    rounds: command.Rounds = 7,
    seconds: command.Seconds = 4.0,
) -> None:
    """Measure the chain and the fused graph: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        pixels = random_pixels(size, size)
        with server_of(random_repository(work, arch, size, 16, say, fused=True)) as server:
            cases = {model: partial(pixel_rate, server.urls.grpc, model, pixels, 1) for model in (_CHAIN, _FUSED)}
            rates = measure(cases, rounds, seconds, say)
    latencies = {model: [1000 / rate for rate in turns] for model, turns in rates.items()}
    ratio = statistics.median(latencies[_CHAIN]) / statistics.median(latencies[_FUSED])
    command.print_report(
        {"ratio": round(ratio, 4), "members": arch, "size": size, "latency_ms": latencies},
        state,
        command.table_of_rounds(latencies, "ms per prediction", "one client, medians over rounds"),
        f"the chain takes [bold]{ratio:.2f}[/bold] times as long as the fused graph",
    )


if __name__ == "__main__":
    command.run_as_program(fused)
