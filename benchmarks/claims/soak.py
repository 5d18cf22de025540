"""Send a server many requests, some of them garbage: are the responses correct, and does its memory grow?

    python -m plurum.benchmarks.claims.soak --requests 100000 --garbage 0.05

`plurum serve` and `plurum gateway`, each in its own process, receive requests from several clients of this one. Most
clients send JPEGs to /predict, and every response is compared with Triton's direct response for that image. The rest is
garbage of many kinds (see `garbage`), sent to the gateway and, as random protobuf, to Triton's own gRPC port; each kind
has its correct statuses. Memory of all processes (PSS) is read after a tenth of the requests, the warm-up, and ten more
times; so is the highest memory of the gateway. Not measured: hours of wall-clock time; large images; a network.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.garbage import GARBAGE
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs
from plurum.benchmarks.tools.servers import GatewayStack, serve_behind_gateway
from plurum.benchmarks.tools.wire import HttpConnections, post, run_fast_loop
from plurum.client import EnsembleClient
from plurum.spec import read_ensemble

__all__ = ["SoakTally", "soak"]

_SIZE, _IMAGES = 64, 16
_PROTOBUF, _INFER = "random protobuf over gRPC", "/inference.GRPCInferenceService/ModelInfer"
_TOLERANCE, _DEADLINE_S, _SAMPLES = 1e-4, 60.0, 10
# Low limits of the gateway: garbage that goes to a limit reaches it soon.
_GATEWAY = ("--max-body-mib", "1", "--receive-s", "3")


@dataclass
class SoakTally:
    """Counts of the outcomes of requests.

    Attributes:
        right: Images with the expected response.
        wrong: Images with another response or none, by what came instead.
        garbage: Garbage with a correct status, by kind.
        garbage_missed: Garbage with another status, by kind and status.
        memory_bytes: Memory by number of requests sent, then by kind of process.
    """

    right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    garbage: Counter[str] = field(default_factory=Counter)
    garbage_missed: Counter[str] = field(default_factory=Counter)
    memory_bytes: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """Growth of all processes together since the warm-up, as a fraction."""
        first, *_, last = (sum(held.values()) for held in self.memory_bytes.values())
        return last / first - 1


class _Soak:
    """Clients that share a plan: images with their expected probabilities by class, and a fraction of garbage."""

    def __init__(
        self, stack: GatewayStack, images: list[bytes], expected: list[dict[str, float]], share: float
    ) -> None:
        self._stack, self._share = stack, share
        self._good = [(image, post("/predict", image)) for image in images]
        self._expected = expected
        self._kinds = itertools.cycle([*GARBAGE, _PROTOBUF])
        self._chance = random.Random(0)  # noqa: S311 (a plan, not a secret)
        # Calls to Triton's gRPC end by themselves: this version can crash when one is cancelled.
        self._channel = grpc.insecure_channel(stack.urls["grpc"])
        self.tally = SoakTally()

    async def run(self, requests: int, clients: int, say: command.Say) -> None:
        """Send the requests, and read the memory now and then."""
        warm_up = requests // 10
        marks = [warm_up, *(warm_up + (requests - warm_up) * part // _SAMPLES for part in range(1, _SAMPLES + 1))]
        async with HttpConnections(self._stack.gateway, clients + 64) as connections:
            done = 0
            for mark in marks:
                turns = iter(range(done, mark))
                await asyncio.gather(*(self._run_client(connections, turns) for _ in range(clients)))
                self.tally.memory_bytes[mark] = await asyncio.to_thread(self._stack.memory_bytes)
                done = mark
                say(f"{done} of {requests}")
        self._channel.close()

    async def _run_client(self, connections: HttpConnections, turns: Iterator[int]) -> None:
        for _ in turns:
            if self._chance.random() < self._share:
                await self._send_garbage(connections)
            else:
                await self._send_image(connections)

    async def _send_image(self, connections: HttpConnections) -> None:
        number = self._chance.randrange(len(self._good))
        response = await connections.send(self._good[number][1], _DEADLINE_S)
        if response.status == 200 and _agrees(json.loads(response.body)["probabilities"], self._expected[number]):
            self.tally.right += 1
        else:
            self.tally.wrong["another answer" if response.status == 200 else str(response.status)] += 1

    async def _send_garbage(self, connections: HttpConnections) -> None:
        kind = next(self._kinds)
        if kind == _PROTOBUF:
            status: int | str = await asyncio.to_thread(self._send_protobuf, self._chance.randbytes(200))
            is_right = status != "OK"
        else:
            made = GARBAGE[kind](self._chance.choice(self._good)[0], self._chance)
            status = (await connections.send(made.sent, _DEADLINE_S, alone=made.alone)).status
            is_right = status in made.statuses
        if is_right:
            self.tally.garbage[kind] += 1
        else:
            self.tally.garbage_missed[f"{kind}: {status}"] += 1

    def _send_protobuf(self, sent: bytes) -> str:
        try:
            self._channel.unary_unary(_INFER)(sent, timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def soak(
    work: command.WorkFolder = Path("runs/soak"),
    repository: command.ServedRepository = None,
    requests: Annotated[int, typer.Option(min=100, help="Number of requests, including garbage.")] = 100_000,
    garbage_share: Annotated[float, typer.Option("--garbage", min=0, max=1, help="Fraction of garbage.")] = 0.05,
    clients: command.Clients = 8,
) -> None:
    """Send requests for a long time: tables on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state):
        served = repository or random_repository(work, command.TINY_ARCHS, _SIZE, 16, say)
        image = read_ensemble(served / "ensemble.json").image
        images = coloured_jpegs(image.height, image.width, _IMAGES)
        with serve_behind_gateway(served, *_GATEWAY) as stack:
            with EnsembleClient(stack.urls["grpc"]) as client:
                expected = [dict(client.predict([one])[0].probabilities) for one in images]
            soaking, start = _Soak(stack, images, expected, garbage_share), time.monotonic()
            run_fast_loop(soaking.run(requests, clients, say))
            took_s, faults, peak_bytes = time.monotonic() - start, stack.faults(), stack.gateway_peak_bytes()
    tally = soaking.tally
    report = {
        **vars(tally),
        "growth": tally.growth,
        "gateway_peak_bytes": peak_bytes,
        "faults": faults,
        "took_s": took_s,
        "clients": clients,
    }
    command.print_report(report, state, _memory_table(tally), _garbage_table(tally))


def _agrees(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[k] - expected[k]) <= _TOLERANCE for k in expected)


def _memory_table(tally: SoakTally) -> Table:
    table = Table("requests", *(names := sorted(next(iter(tally.memory_bytes.values())))), "all, MiB")
    for mark, held in tally.memory_bytes.items():
        row = [*(held.get(name, 0) for name in names), sum(held.values())]
        table.add_row(str(mark), *(f"{size / 2**20:.1f}" for size in row))
    return table


def _garbage_table(tally: SoakTally) -> Table:
    table = Table("kind", "correctly refused", title=f"{tally.right} right, {tally.wrong.total()} wrong")
    for kind, count in sorted(tally.garbage.items()):
        table.add_row(kind, str(count))
    for kind, count in sorted(tally.garbage_missed.items()):
        table.add_row(f"[red]{kind}", f"not {count}")
    return table


if __name__ == "__main__":
    command.run_as_program(soak)
