"""Send a server many times more requests than it can answer.

    python -m plurum.benchmarks.claims.overload --repository REPO --seconds 60 --times 20

`plurum serve` and `plurum gateway`, each in its own process, receive requests for /predict with one JPEG from this one:

1. the peak: clients that send the next request as soon as they have a response (a closed loop);
2. the overload: many times the rate of the peak, each request sent when it is due, whatever happens to the others (an
   open loop). Time counts from when a request was due, over as many connections as it takes;
3. the peak again, as other work on the machine changes it; meanwhile one client compares its latency with the latency
   before the overload.

The clients share the cores with the server: the report states the processor time of each, and how far the clients fell
behind their plan. Not measured: a network, TLS, many clients at many addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import closed_loop
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.benchmarks.tools.servers import GatewayStack, serve_behind_gateway
from plurum.benchmarks.tools.wire import HttpConnections, post, run_fast_loop
from plurum.errors import ServerError
from plurum.spec import read_ensemble

__all__ = ["TimedResponse", "outcome", "overload"]

_SIZE = 224
# Below the gateway's limit on connections, so that only the number of requests is too large.
_CONNECTIONS, _CLIENTS, _WARM_UP_S = 900, 16, 2.0
_TICK_S, _LATE_S, _CALM_S, _LONGEST_RETURN_S = 0.005, 5.0, 1.0, 60.0
# Latency is back when the median of about this many requests is at most this times the latency before.
_AGAIN, _BACK = 5, 2.0


@dataclass(frozen=True)
class TimedResponse:
    """Status and times of one request.

    Attributes:
        status: HTTP status; 0 if no response came or the connection broke.
        due_s: Time at which the request was due, seconds.
        done_s: Time of the response on the same clock, seconds.
    """

    status: int
    due_s: float
    done_s: float

    @property
    def took_s(self) -> float:
        """Time from when the request was due, seconds."""
        return self.done_s - self.due_s


async def _send_at_rate(
    url: str, request: bytes, timeout_s: float, rate: float, seconds: float
) -> tuple[list[TimedResponse], float]:
    """Send `rate` requests per second, each when it is due; return responses, and how late a request was, seconds."""
    start, behind_s, tasks = time.monotonic(), 0.0, list[asyncio.Task[TimedResponse]]()
    async with HttpConnections(url, _CONNECTIONS) as connections:

        async def send(due_s: float) -> TimedResponse:
            response = await connections.send(request, timeout_s)
            return TimedResponse(response.status, due_s, time.monotonic())

        while len(tasks) < int(rate * seconds):
            due = int(rate * min(time.monotonic() - start, seconds)) + 1
            for number in range(len(tasks), min(due, int(rate * seconds))):
                tasks.append(asyncio.create_task(send(start + number / rate)))
                behind_s = max(behind_s, time.monotonic() - start - number / rate)
            await asyncio.sleep(_TICK_S)
        return await asyncio.gather(*tasks), behind_s


def outcome(responses: list[TimedResponse], start_s: float, seconds: float, deadline_s: float) -> dict[str, Any]:
    """Return figures of an open loop's requests.

    Args:
        responses: All responses.
        start_s: Time of the first request.
        seconds: Time during which requests were sent; later responses do not count as throughput.
        deadline_s: Deadline of each request; one that took a second longer, for the way there and back, has missed it.
    """
    good = [one for one in responses if one.status == 200]
    refused = sorted(one.took_s for one in responses if one.status in {503, 504, 413, 429})
    return {
        "sent": len(responses),
        "statuses": dict(sorted(Counter(str(one.status) for one in responses).items())),
        "accepted_per_s": sum(one.done_s <= start_s + seconds for one in good) / seconds,
        "beyond_deadline": sum(one.took_s > deadline_s + 1 for one in responses),
        "longest_s": max(one.took_s for one in responses),
        "answered_ms": _quantiles([one.took_s for one in good]),
        "refused_ms": _quantiles(refused),
    }


def overload(
    work: command.WorkFolder = Path("runs/overload"),
    repository: command.ServedRepository = None,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the overload, seconds.")] = 60.0,
    times: Annotated[float, typer.Option(min=1, help="Rate of the overload, as a multiple of the peak.")] = 20.0,
    deadline: Annotated[float, typer.Option(min=0.1, help="Deadline of each request, seconds.")] = 10.0,
    peak_seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement of the peak, seconds.")] = 10.0,
) -> None:
    """Send too many requests: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        served = repository or random_repository(work, command.ARCHS[:2], _SIZE, 16, say)
        image = read_ensemble(served / "ensemble.json").image
        request = post("/predict", coloured_jpegs(image.height, image.width, 1)[0], x_deadline_ms=int(1000 * deadline))
        with serve_behind_gateway(served) as stack:
            report = _measure(stack, request, (seconds, times, deadline, peak_seconds), say)
            report |= {"deadline_s": deadline, "faults": stack.faults()}
    command.print_report(report, state, _table(report, int(state["cores"])))


def _measure(
    stack: GatewayStack, request: bytes, plan: tuple[float, float, float, float], say: command.Say
) -> dict[str, Any]:
    """Return the figures of the report: the peak, the overload, and the peak again."""
    seconds, times, deadline_s, peak_s = plan
    run_clients = partial(closed_loop, stack.gateway, [request])
    say("peak")
    run_clients(_CLIENTS, _WARM_UP_S)
    calm_ms = run_clients(1, _CALM_S).p50_ms
    before = run_clients(_CLIENTS, peak_s).images_per_s
    say(f"{times:g} times {before:.1f} requests per second")
    busy, start = _busy_s(stack), time.monotonic()
    overloading = _send_at_rate(stack.gateway, request, deadline_s + _LATE_S, times * before, seconds)
    responses, behind_s = run_fast_loop(overloading)
    spent = {name: at - busy[name] for name, at in _busy_s(stack).items()}
    say("calm again")
    end = start + seconds
    while time.monotonic() - end < _LONGEST_RETURN_S:
        # The gateway may still refuse requests.
        with contextlib.suppress(ServerError):
            if run_clients(1, _AGAIN * calm_ms / 1000).p50_ms <= _BACK * calm_ms:
                break
    back_s = time.monotonic() - end
    after = run_clients(_CLIENTS, peak_s).images_per_s
    over = outcome(responses, start, seconds, deadline_s)
    return {
        "peak_per_s": {"before": before, "after": after},
        "offered_per_s": times * before,
        "overload": over,
        "share_of_peak": {"before": over["accepted_per_s"] / before, "after": over["accepted_per_s"] / after},
        "latency_before_ms": calm_ms,
        "latency_back_s": back_s,
        "generator_behind_s": behind_s,
        "cores_used": {name: busy_s / seconds for name, busy_s in spent.items()},
    }


def _busy_s(stack: GatewayStack) -> dict[str, float]:
    return stack.cpu_s() | {"generator": time.process_time()}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {name: 1000 * float(np.percentile(seconds, share)) for name, share in (("median", 50), ("p99", 99))}


def _table(report: dict[str, Any], cores: int) -> Table:
    over, peak, used = report["overload"], report["peak_per_s"], report["cores_used"]
    table = Table("", "", title=f"{report['offered_per_s']:.0f} requests per second", show_header=False)
    table.add_row("peak per second, before and after", f"{peak['before']:.1f}, {peak['after']:.1f}")
    table.add_row("answered per second under overload", f"{over['accepted_per_s']:.1f}")
    table.add_row(
        "fraction of the peak before, after", ", ".join(f"{one:.0%}" for one in report["share_of_peak"].values())
    )
    table.add_row("by status", ", ".join(f"{status}: {count}" for status, count in over["statuses"].items()))
    table.add_row("beyond the deadline; longest, s", f"{over['beyond_deadline']}; {over['longest_s']:.2f}")
    table.add_row("latency back after, s", f"{report['latency_back_s']:.2f}")
    table.add_row("faults noticed", ", ".join(report["faults"]) or "none")
    table.add_row("cores used", ", ".join(f"{name} {busy:.2f}" for name, busy in used.items()))
    if used["generator"] > 0.1 * cores:
        table.caption = "The clients took more than a tenth of the cores from the server."
    return table


if __name__ == "__main__":
    command.run_as_program(overload)
