"""What becomes of a server that is asked for many times what it can answer.

    python -m plurum.benchmarks.claims.overload --repository REPO --seconds 60 --times 20

`plurum serve` and `plurum gateway`, processes of their own, are asked for /predict of one JPEG by a third, this one:

1. the peak: clients that ask again as soon as they are answered (a closed loop);
2. the overload: so many times that rate, each request sent when it is due, however the others fare (an open loop).
   Time is counted from when it was due, over as many connections as it takes;
3. the peak again, as other work on the machine changes it; one client meanwhile asks, and its latency is compared with
   what it was before.

Who asks shares the cores: how long processors were busy with each is reported, and how far behind its plan the
generator fell. Not measured: a network, TLS, many senders at many addresses.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.soak import jpegs
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.stack import Stack
from plurum.benchmarks.tools.wire import Wires, post, run_wired
from plurum.spec import read_ensemble

__all__ = ["Answer", "outcome", "overload"]

_ARCHS, _SIZE = ("resnet18", "efficientnet_b0"), 224
# Below the gateway's limit on connections, so that it is the requests that are too many.
_CONNECTIONS, _CLIENTS, _WARM_UP_S = 900, 16, 2.0
_TICK_S, _LATE_S, _CALM, _LONGEST_RETURN_S = 0.005, 5.0, 20, 60.0
# Latency is back when the median of so many questions is at most this times what it was.
_AGAIN, _BACK = 5, 2.0


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        status: Of HTTP; 0 where none came or the connection broke.
        due_s: When it was to be sent.
        done_s: When it was answered; both on one clock.
    """

    status: int
    due_s: float
    done_s: float

    @property
    def took_s(self) -> float:
        """From when it was due."""
        return self.done_s - self.due_s


class _Asker:
    """Sends one request over and over."""

    def __init__(self, wires: Wires, request: bytes, deadline_s: float) -> None:
        self._wires, self._request, self._patience_s = wires, request, deadline_s + _LATE_S
        self.behind_s = 0.0

    async def ask(self, due_s: float) -> Answer:
        """Send it now."""
        reply = await self._wires.ask(self._request, self._patience_s)
        return Answer(reply.status, due_s, time.monotonic())

    async def peak_per_s(self, clients: int, seconds: float) -> float:
        """Return what is answered a second while several clients ask again as soon as they are answered.

        It is counted for so long from when each has had a first answer: at the end those in flight go uncounted, as
        they do under overload.
        """
        waiting, start, moments = clients, math.inf, list[float]()

        async def client() -> None:
            nonlocal waiting, start
            await self.ask(time.monotonic())
            waiting -= 1
            if not waiting:
                start = time.monotonic()
            while time.monotonic() < start + seconds:
                answer = await self.ask(time.monotonic())
                if answer.status == 200:
                    moments.append(answer.done_s)

        await asyncio.gather(*(client() for _ in range(clients)))
        return sum(start < moment <= start + seconds for moment in moments) / seconds

    async def opened(self, rate: float, seconds: float) -> list[Answer]:
        """Send `rate` requests a second, each when it is due."""
        start = time.monotonic()
        tasks: list[asyncio.Task[Answer]] = []
        while len(tasks) < int(rate * seconds):
            due = int(rate * min(time.monotonic() - start, seconds)) + 1
            for number in range(len(tasks), min(due, int(rate * seconds))):
                tasks.append(asyncio.create_task(self.ask(start + number / rate)))
                self.behind_s = max(self.behind_s, time.monotonic() - start - number / rate)
            await asyncio.sleep(_TICK_S)
        return await asyncio.gather(*tasks)


@dataclass(frozen=True)
class _Measured:
    """Of one overload: peaks before and after, its answers, and what it took."""

    before: float
    over: list[Answer]
    after: float
    calm_s: float
    back_s: float
    behind_s: float
    start_s: float
    busy_s: dict[str, float]


def outcome(answers: list[Answer], start_s: float, seconds: float, deadline_s: float) -> dict[str, Any]:
    """Return what became of an open loop's requests.

    Args:
        answers: All of them.
        start_s: When it began.
        seconds: How long it sent; answers that came later are none of its throughput.
        deadline_s: Each request's; what took a second longer, for the way there and back, did not keep it.
    """
    good = [one for one in answers if one.status == 200]
    refused = sorted(one.took_s for one in answers if one.status in {503, 504, 413, 429})
    return {
        "sent": len(answers),
        "statuses": dict(sorted(Counter(str(one.status) for one in answers).items())),
        "accepted_per_s": sum(one.done_s <= start_s + seconds for one in good) / seconds,
        "beyond_deadline": sum(one.took_s > deadline_s + 1 for one in answers),
        "longest_s": max(one.took_s for one in answers),
        "answered_ms": _quantiles([one.took_s for one in good]),
        "refused_ms": _quantiles(refused),
    }


def overload(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/overload"),
    repository: Annotated[Path | None, typer.Option(help="Instead of one with random weights.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of overload.")] = 60.0,
    times: Annotated[float, typer.Option(min=1, help="The peak.")] = 20.0,
    deadline: Annotated[float, typer.Option(min=0.1, help="Of each request, seconds.")] = 10.0,
    peak_seconds: Annotated[float, typer.Option(min=1, help="Of each measurement of the peak.")] = 10.0,
) -> None:
    """Ask for too much: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        served = repository or random_repository(work, _ARCHS, _SIZE, 16, status.update)
        image = read_ensemble(served / "ensemble.json").image
        request = post("/predict", jpegs(image.height, image.width, 1)[0], x_deadline_ms=int(1000 * deadline))
        state = machine()
        with Stack(served) as stack:
            measured = run_wired(_measure(stack, request, (seconds, times, deadline, peak_seconds), status.update))
            faults = stack.faults()
    peak, again = measured.before, measured.after
    over = outcome(measured.over, measured.start_s, seconds, deadline)
    report: dict[str, Any] = {
        "peak_per_s": {"before": peak, "after": again},
        "offered_per_s": times * peak,
        "deadline_s": deadline,
        "overload": over,
        "share_of_peak": {"before": over["accepted_per_s"] / peak, "after": over["accepted_per_s"] / again},
        "latency_before_ms": 1000 * measured.calm_s,
        "latency_back_s": measured.back_s,
        "generator_behind_s": measured.behind_s,
        "cores_used": {name: busy / seconds for name, busy in measured.busy_s.items()},
        "faults": faults,
        "machine": state,
        "versions": versions(),
    }
    console.print(_table(report))
    sys.stdout.write(json.dumps(report) + "\n")


async def _measure(
    stack: Stack, request: bytes, plan: tuple[float, float, float, float], say: Callable[[str], None]
) -> _Measured:
    seconds, times, deadline_s, peak_s = plan
    async with Wires(stack.gateway, _CONNECTIONS) as wires:
        asker = _Asker(wires, request, deadline_s)
        say("peak")
        await asker.peak_per_s(_CLIENTS, _WARM_UP_S)
        calm_s = await _latency_s(asker, _CALM)
        before = await asker.peak_per_s(_CLIENTS, peak_s)
        say(f"{times:g} times {before:.1f} a second")
        busy, start = _busy_s(stack), time.monotonic()
        over = await asker.opened(times * before, seconds)
        spent = {name: at - busy[name] for name, at in _busy_s(stack).items()}
        say("calm again")
        end = start + seconds
        while await _latency_s(asker, _AGAIN) > _BACK * calm_s and time.monotonic() - end < _LONGEST_RETURN_S:
            pass
        back_s = time.monotonic() - end
        after = await asker.peak_per_s(_CLIENTS, peak_s)
    return _Measured(before, over, after, calm_s, back_s, asker.behind_s, start, spent)


async def _latency_s(asker: _Asker, questions: int) -> float:
    """Return the median time of questions, one after the other."""
    return statistics.median([(await asker.ask(time.monotonic())).took_s for _ in range(questions)])


def _busy_s(stack: Stack) -> dict[str, float]:
    return stack.cpu_s() | {"generator": time.process_time()}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {name: 1000 * float(np.percentile(seconds, share)) for name, share in (("median", 50), ("p99", 99))}


def _table(report: dict[str, Any]) -> Table:
    over, peak, cores = report["overload"], report["peak_per_s"], report["cores_used"]
    table = Table("", "", title=f"{report['offered_per_s']:.0f} requests a second", show_header=False)
    table.add_row("peak a second, before and after", f"{peak['before']:.1f}, {peak['after']:.1f}")
    table.add_row("answered a second under overload", f"{over['accepted_per_s']:.1f}")
    table.add_row(
        "share of the peak before, after", ", ".join(f"{one:.0%}" for one in report["share_of_peak"].values())
    )
    table.add_row("by status", ", ".join(f"{status}: {count}" for status, count in over["statuses"].items()))
    table.add_row("beyond their deadline; longest, s", f"{over['beyond_deadline']}; {over['longest_s']:.2f}")
    table.add_row("latency back after, s", f"{report['latency_back_s']:.2f}")
    table.add_row("faults noticed", ", ".join(report["faults"]) or "none")
    table.add_row("cores used", ", ".join(f"{name} {busy:.2f}" for name, busy in cores.items()))
    if cores["generator"] > 0.1 * report["machine"]["cores"]:
        table.caption = "The generator took more than a tenth of the cores from those it measures."
    return table


if __name__ == "__main__":
    typer.run(overload)
