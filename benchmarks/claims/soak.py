"""A server that is asked for a long time, by some who send garbage: does it answer rightly, and does it grow?

    python -m plurum.benchmarks.claims.soak --requests 100000 --garbage 0.05

`plurum serve` and `plurum gateway`, processes of their own, are asked by several clients of a third. Most send JPEGs
to /predict, and every answer is compared with what Triton says of that image when it is asked directly. A share is
garbage of many kinds (see `garbage`), to the gateway and, as random protobuf, to Triton's own gRPC port; each kind
has the statuses that are right for it. Memory of all processes (PSS) is read after a tenth of the requests, the warm-
up, and ten more times; so is the most that the gateway ever had. Not measured: hours of wall-clock time; large
images; a network.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.garbage import GARBAGE, garbage
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.stack import Stack
from plurum.benchmarks.tools.wire import Wires, post, run_wired
from plurum.client import EnsembleClient
from plurum.spec import read_ensemble

__all__ = ["Tally", "jpegs", "soak"]

_ARCHS, _SIZE, _IMAGES = ("test_resnet", "test_byobnet"), 64, 16
_PROTOBUF, _INFER = "random protobuf over gRPC", "/inference.GRPCInferenceService/ModelInfer"
_TOLERANCE, _DEADLINE_S, _SAMPLES = 1e-4, 60.0, 10
# Small bodies and short patience: garbage that goes to a limit gets there soon.
_GATEWAY = ("--max-body-mib", "1", "--receive-s", "3")


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        right: Good ones with the expected answer.
        wrong: Good ones with another answer or none, by what came instead.
        refused: Garbage that was answered as it should be, by kind.
        missed: Garbage that was not, by kind and status.
        memory_bytes: By how many requests had been sent, then by kind of process.
    """

    right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    memory_bytes: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """How much all processes together have grown since the warm-up, as a share."""
        first, *_, last = (sum(held.values()) for held in self.memory_bytes.values())
        return last / first - 1


class _Soak:
    """Clients that share a plan.

    Args:
        stack: Asked.
        images: Good ones, JPEG.
        expected: Of each of them, the probabilities by class.
        share: Of garbage.
    """

    def __init__(self, stack: Stack, images: list[bytes], expected: list[dict[str, float]], share: float) -> None:
        self._stack, self._share = stack, share
        self._good = [(image, post("/predict", image)) for image in images]
        self._expected = expected
        self._kinds = itertools.cycle([*GARBAGE, _PROTOBUF])
        self._chance = random.Random(0)  # noqa: S311 (a plan, not a secret)
        # Triton's gRPC is asked by calls that end by themselves: this version can crash when one is cancelled.
        self._channel = grpc.insecure_channel(stack.urls["grpc"])
        self.tally = Tally()

    async def run(self, requests: int, clients: int, say: Callable[[str], None]) -> None:
        """Send so many requests, and look at the memory now and then."""
        warm_up = requests // 10
        marks = [warm_up, *(warm_up + (requests - warm_up) * part // _SAMPLES for part in range(1, _SAMPLES + 1))]
        async with Wires(self._stack.gateway, clients + 64) as wires:
            done = 0
            for mark in marks:
                turns = iter(range(done, mark))
                await asyncio.gather(*(self._client(wires, turns) for _ in range(clients)))
                self.tally.memory_bytes[mark] = await asyncio.to_thread(self._stack.memory_bytes)
                done = mark
                say(f"{done} of {requests}")
        self._channel.close()

    async def _client(self, wires: Wires, turns: Iterator[int]) -> None:
        for _ in turns:
            if self._chance.random() < self._share:
                await self._bad(wires)
            else:
                await self._ask(wires)

    async def _ask(self, wires: Wires) -> None:
        number = self._chance.randrange(len(self._good))
        reply = await wires.ask(self._good[number][1], _DEADLINE_S)
        if reply.status == 200 and _agrees(json.loads(reply.body)["probabilities"], self._expected[number]):
            self.tally.right += 1
        else:
            self.tally.wrong["another answer" if reply.status == 200 else str(reply.status)] += 1

    async def _bad(self, wires: Wires) -> None:
        kind = next(self._kinds)
        if kind == _PROTOBUF:
            status: int | str = await asyncio.to_thread(self._protobuf, self._chance.randbytes(200))
            right = status != "OK"
        else:
            sent = garbage(kind, self._chance.choice(self._good)[0], self._chance)
            status = (await wires.ask(sent.sent, _DEADLINE_S, alone=sent.alone)).status
            right = status in sent.statuses
        (self.tally.refused if right else self.tally.missed)[kind if right else f"{kind}: {status}"] += 1

    def _protobuf(self, sent: bytes) -> str:
        try:
            self._channel.unary_unary(_INFER)(sent, timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def jpegs(height: int, width: int, images: int) -> list[bytes]:
    """Return images with shapes in them: noise would make a JPEG larger than any photograph."""
    chance, files = np.random.default_rng(0), []
    for _ in range(images):
        pixels = chance.integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((width, height)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def soak(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/soak"),
    repository: Annotated[Path | None, typer.Option(help="Instead of one with random weights.")] = None,
    requests: Annotated[int, typer.Option(min=100, help="Good and bad ones.")] = 100_000,
    garbage_share: Annotated[float, typer.Option("--garbage", min=0, max=1, help="Share of bad ones.")] = 0.05,
    clients: Annotated[int, typer.Option(min=1, help="That ask all the time.")] = 8,
) -> None:
    """Ask for long: a table on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    with console.status("members") as status:
        served = repository or random_repository(work, _ARCHS, _SIZE, 16, status.update)
        image = read_ensemble(served / "ensemble.json").image
        images, state = jpegs(image.height, image.width, _IMAGES), machine()
        with Stack(served, *_GATEWAY) as stack:
            with EnsembleClient(stack.urls["grpc"]) as client:
                expected = [dict(client.predict([one])[0].probabilities) for one in images]
            soaking, start = _Soak(stack, images, expected, garbage_share), time.monotonic()
            run_wired(soaking.run(requests, clients, status.update))
            took_s, faults, peak_bytes = time.monotonic() - start, stack.faults(), stack.gateway_peak_bytes()
    tally = soaking.tally
    console.print(_memory(tally), _garbage(tally))
    report = {
        "right": tally.right,
        "wrong": dict(tally.wrong),
        "garbage": dict(tally.refused),
        "garbage_missed": dict(tally.missed),
        "memory_bytes": tally.memory_bytes,
        "growth": tally.growth,
        "gateway_peak_bytes": peak_bytes,
        "faults": faults,
        "took_s": took_s,
        "clients": clients,
        "machine": state,
        "versions": versions(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def _agrees(answer: dict[str, float], expected: dict[str, float]) -> bool:
    return answer.keys() == expected.keys() and all(abs(answer[k] - expected[k]) <= _TOLERANCE for k in expected)


def _memory(tally: Tally) -> Table:
    table = Table("requests", *(names := sorted(next(iter(tally.memory_bytes.values())))), "all, MiB")
    for mark, held in tally.memory_bytes.items():
        row = [*(held.get(name, 0) for name in names), sum(held.values())]
        table.add_row(str(mark), *(f"{size / 2**20:.1f}" for size in row))
    return table


def _garbage(tally: Tally) -> Table:
    table = Table("kind", "refused as it should be", title=f"{tally.right} right, {tally.wrong.total()} wrong")
    for kind, count in sorted(tally.refused.items()):
        table.add_row(kind, str(count))
    for kind, count in sorted(tally.missed.items()):
        table.add_row(f"[red]{kind}", f"not {count}")
    return table


if __name__ == "__main__":
    typer.run(soak)
