"""What the gateway costs: the same JPEG asked of Triton itself and through `plurum gateway`, in one run.

    python -m plurum.benchmarks.claims.gateway

Measured, of one server and one gateway on this machine, each asked four ways: Triton over gRPC, Triton over HTTP, the
gateway's KServe call, and its /predict.

- Latency, with an ensemble so small that little else is measured: one client asks each way once, in an order that
  changes, and again; figures are medians and 10th percentiles, which a busy machine disturbs less, and what a way
  through the gateway adds is a difference of them.
- Images per second that eight clients get, with members of a real size: every way gets an uncounted warm-up, then turns
  in an order that changes; ratios are of medians over rounds.
- Processor time for an image of those turns, Triton's and the gateway's: what a busy machine disturbs least. Where the
  cores are the limit, throughput goes by their sum.

Clients are coroutines of this process with prepared requests. Not measured: a network, TLS, keys, a machine of its own
for who asks: clients, gateway and Triton share the cores. A busy machine makes differences larger (the load average is
printed).
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from plurum.benchmarks.tools.machine import machine, processor_s, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.turns import Case, measure
from plurum.serving import Server, ServerSettings

__all__ = ["added_ms", "gateway", "ratios"]

_TINY, _REAL = ("test_resnet", "test_byobnet"), ("resnet18", "efficientnet_b0", "densenet121")
_TINY_SIZE, _REAL_SIZE = 64, 224
_GRPC, _HTTP, _INFER, _PREDICT = "Triton, gRPC", "Triton, HTTP", "gateway, infer", "gateway, /predict"
_WAYS, _DIRECT, _BEHIND = (_GRPC, _HTTP, _INFER, _PREDICT), (_GRPC, _HTTP), (_INFER, _PREDICT)
_CLIENTS, _WARM_UP = 8, 20
# One question and its answer.
Ask = Callable[[], Awaitable[Any]]
Figures = dict[str, list[float]]


@dataclass(frozen=True)
class _Scene:
    """What is asked.

    Attributes:
        urls: By way.
        image: A JPEG of the members' size.
        processes: Of "triton" and of the "gateway".
    """

    urls: dict[str, str]
    image: bytes
    processes: dict[str, list[int]]

    def cpu_ms(self) -> dict[str, float]:
        """Return the milliseconds that processors have been busy with each so far."""
        return {name: sum(map(_cpu_ms, processes)) for name, processes in self.processes.items()}


def gateway(
    work: Annotated[Path, typer.Option(help="Keeps the exported graphs for the next run.")] = Path("runs/benchmark"),
    requests: Annotated[int, typer.Option(min=1, help="For latency, of each way.")] = 1000,
    rounds: Annotated[int, typer.Option(min=0, help="Turns of each way for throughput; 0 leaves it out.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 4.0,
) -> None:
    """Measure what the gateway adds: tables on standard error, one line of JSON on standard output."""
    console = Console(stderr=True)
    report: dict[str, Any] = {"machine": machine(), "versions": versions()}
    with console.status("members") as status:
        with _scene(work / "gateway-tiny", _TINY, _TINY_SIZE, status.update) as scene:
            status.update("latency")
            latencies = asyncio.run(_latencies(scene, requests))
        for name, values in latencies.items():
            report[name] = {
                "latency_ms": {way: round(ms, 3) for way, ms in values.items()},
                "added_ms": added_ms(values),
            }
        if rounds:
            with _scene(work / "gateway-real", _REAL, _REAL_SIZE, status.update) as scene:
                rates, cpu_ms = _rates(scene, rounds, seconds, status.update)
            report |= {"images_per_s": rates, "throughput_ratio": ratios(rates), "cpu_ms_per_image": cpu_ms}
    console.print(_table(report))
    typer.echo(json.dumps(report))


def added_ms(latencies: dict[str, float]) -> dict[str, float]:
    """Return what each way through the gateway adds to each way around it, ms."""
    pairs = ((behind, direct) for behind in _BEHIND for direct in _DIRECT)
    return {f"{behind} - {direct}": round(latencies[behind] - latencies[direct], 3) for behind, direct in pairs}


def ratios(rates: Figures) -> dict[str, float]:
    """Return the throughput of each way through the gateway over that of each way around it, of medians over rounds."""
    medians = {way: statistics.median(turns) for way, turns in rates.items()}
    pairs = ((behind, direct) for behind in _BEHIND for direct in _DIRECT)
    return {f"{behind} / {direct}": round(medians[behind] / medians[direct], 4) for behind, direct in pairs}


@contextmanager
def _scene(work: Path, archs: tuple[str, ...], size: int, progress: Callable[[str], None]) -> Iterator[_Scene]:
    repository = random_repository(work, archs, size, 16, progress)
    # Something with shapes in it: noise would make a JPEG larger than any photograph.
    pixels = np.random.default_rng(0).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, "JPEG", quality=90)
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        options = ["--triton", server.urls.grpc, "--port", "0", "--metrics-port", "0", "--json"]
        command = [sys.executable, "-m", "plurum", "gateway", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = json.loads(next(iter(process.stdout or ())))["http"]
                urls = {_GRPC: server.urls.grpc, _HTTP: server.urls.http, _INFER: url, _PREDICT: url}
                processes = {"triton": server.processes(), "gateway": [process.pid]}
                yield _Scene(urls, file.getvalue(), processes)
            finally:
                process.terminate()


async def _latencies(scene: _Scene, requests: int) -> dict[str, dict[str, float]]:
    """Return the median and the 10th percentile of each way's milliseconds."""
    taken: Figures = {way: [] for way in _WAYS}
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    async with AsyncExitStack() as stack:
        asks = {way: await stack.enter_async_context(_asking(scene, way)) for way in _WAYS}
        for turn in range(requests + _WARM_UP):
            for way in order.sample(_WAYS, len(_WAYS)):
                began = time.perf_counter()
                await asks[way]()
                if turn >= _WARM_UP:
                    taken[way].append(1000 * (time.perf_counter() - began))
    shares = {"median": 50, "percentile_10": 10}
    return {
        name: {way: float(np.percentile(values, share)) for way, values in taken.items()}
        for name, share in shares.items()
    }


def _rates(
    scene: _Scene, rounds: int, seconds: float, progress: Callable[[str], None]
) -> tuple[Figures, dict[str, dict[str, float]]]:
    """Return images per second by way and round, and by way the milliseconds of processor time for an image."""
    images = dict.fromkeys(_WAYS, 0)
    spent = {way: dict.fromkeys(scene.processes, 0.0) for way in _WAYS}

    def case(way: str, length_s: float) -> float:
        before = scene.cpu_ms()
        answered, took_s = asyncio.run(_closed_loop(scene, way, length_s))
        images[way] += answered
        for name, after in scene.cpu_ms().items():
            spent[way][name] += after - before[name]
        return answered / took_s

    cases: dict[str, Case] = {way: partial(case, way) for way in _WAYS}
    rates = measure(cases, rounds, seconds, progress)
    return rates, {way: {name: round(ms / images[way], 3) for name, ms in spent[way].items()} for way in _WAYS}


def _cpu_ms(process: int) -> float:
    return 1000 * processor_s(process)


async def _closed_loop(scene: _Scene, way: str, seconds: float) -> tuple[int, float]:
    """Return how many images several clients got answers to, and in how many seconds."""

    async def until(ask: Ask, end: float) -> int:
        answered = 0
        while time.perf_counter() < end:
            await ask()
            answered += 1
        return answered

    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(_asking(scene, way)) for _ in range(_CLIENTS)]
        began = time.perf_counter()
        answered = await asyncio.gather(*(until(ask, began + seconds) for ask in asks))
        return sum(answered), time.perf_counter() - began


@asynccontextmanager
async def _asking(scene: _Scene, way: str) -> AsyncIterator[Ask]:
    """Give a client with a connection of its own, after one uncounted answer."""
    async with AsyncExitStack() as stack:
        if way == _GRPC:
            ask = await stack.enter_async_context(_grpc(scene.urls[way], scene.image))
        else:
            request = _predict(scene.image) if way == _PREDICT else _infer(scene.image)
            ask = await stack.enter_async_context(_http(scene.urls[way], request))
        await ask()
        yield ask


@asynccontextmanager
async def _grpc(url: str, image: bytes) -> AsyncIterator[Ask]:
    tensor = InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
    async with InferenceServerClient(url) as client:
        yield partial(client.infer, "ensemble", [tensor])


@asynccontextmanager
async def _http(url: str, request: bytes) -> AsyncIterator[Ask]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)

    async def ask() -> None:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        answer = await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0]))
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(answer.decode(errors="replace"))

    try:
        yield ask
    finally:
        writer.close()
        await writer.wait_closed()


def _predict(image: bytes) -> bytes:
    return f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(image)}\r\n\r\n".encode() + image


def _infer(image: bytes) -> bytes:
    data = len(image).to_bytes(4, "little") + image
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = (
        "POST /v2/models/ensemble/infer HTTP/1.1\r\nhost: x\r\n"
        f"inference-header-content-length: {len(text)}\r\ncontent-length: {len(text) + len(data)}\r\n\r\n"
    )
    return head.encode() + text + data


def _table(report: dict[str, Any]) -> Table:
    columns = ("median ms", "10th percentile", "images/s", "Triton's CPU, ms", "gateway's")
    table = Table("", *columns, title="one client, small members; eight clients, real members")
    for column in table.columns[1:]:
        column.justify = "right"
    for way in _WAYS:
        latencies = (f"{report[name]['latency_ms'][way]:.2f}" for name in ("median", "percentile_10"))
        turns = report.get("images_per_s", {}).get(way)
        rate = "" if turns is None else f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})"
        cpu = report.get("cpu_ms_per_image", {}).get(way, {})
        table.add_row(way, *latencies, rate, *(f"{cpu[name]:.2f}" if cpu else "" for name in ("triton", "gateway")))
    return table


if __name__ == "__main__":
    typer.run(gateway)
