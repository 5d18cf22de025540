"""Clients of an ensemble that ask again as soon as they are answered, or at given moments: rates and latencies.

All are coroutines of one thread, so that asking takes little from the cores that answer: over gRPC on one connection,
over HTTP, which takes less still, on one for each request in flight. Requests are prepared before, sent in turn, and
never cancelled: whatever ends a measurement, those in flight are waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import grpc.aio
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult
from tritonclient.grpc import service_pb2 as pb

from plurum.benchmarks.tools.requests import decoded
from plurum.benchmarks.tools.wire import Wires, post
from plurum.errors import ServerError
from plurum.spec import IMAGE, INPUT_PIXELS, ImageSpec, Metadata

__all__ = [
    "Point",
    "Protocol",
    "answers",
    "closed_loop",
    "mean_of",
    "open_loop",
    "pixel_rate",
    "pixel_request",
    "requests_of",
]

Ask = Callable[[], Awaitable[tuple[float, bytes]]]
Protocol = Literal["gRPC", "HTTP"]
_T = TypeVar("_T")
_ANY_SIZE = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_FIGURES = ("images_per_s", "p50_ms", "p99_ms")
# Requests in flight over HTTP; none waits for a connection.
_MOST, _TIMEOUT_S = 4096, 100.0


class Point(Metadata):
    """What a load made of a server.

    Attributes:
        clients: Requests in flight; 0 where they were sent at given moments.
        requests: Answered, an image each.
        images_per_s: Answered.
        p50_ms: Median latency.
        p99_ms: The latency that 99 % were not above; of less than 100 requests the longest.
    """

    clients: int
    requests: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


def mean_of(points: Sequence[Point]) -> Point:
    """Return the means of turns at the same load, and all their requests."""
    figures = {name: float(np.mean([getattr(one, name) for one in points])) for name in _FIGURES}
    return Point(clients=points[0].clients, requests=sum(one.requests for one in points), **figures)


def requests_of(
    images: Sequence[bytes], spec: ImageSpec, model: str, over: Protocol = "gRPC", *, each: int = 1
) -> list[bytes]:
    """Return prepared requests for `each` encoded images in turn, which must divide them.

    They are sent as they are to `ensemble`, as pixels to any other model.
    """
    groups = [images[start : start + each] for start in range(0, len(images), each)]
    if model != "ensemble":
        return [pixel_request(model, np.stack([decoded(one, spec) for one in group]), over) for group in groups]
    # BYTES is a length and the bytes.
    raw = [b"".join(struct.pack("<I", len(one)) + one for one in group) for group in groups]
    return [_REQUESTS[over](model, IMAGE, "BYTES", (each, 1), content) for content in raw]


def pixel_request(model: str, pixels: npt.NDArray[np.uint8], over: Protocol = "gRPC") -> bytes:
    """Return the prepared request of a `model` that takes PIXELS for `pixels`, uint8 `[batch, height, width, 3]`."""
    return _REQUESTS[over](model, INPUT_PIXELS, "UINT8", pixels.shape, pixels.tobytes())


def answers(url: str, requests: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Return what every member says to each request, `[requests, members, classes]`.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask_each(_: threading.Event) -> npt.NDArray[np.float32]:
        async with _asking(url, requests) as once:
            responses = [pb.ModelInferResponse.FromString((await once())[1]) for _ in requests]
        return np.concatenate([InferResult(one).as_numpy("MEMBER_PROBABILITIES") for one in responses])

    with _refusals():
        return _finished(ask_each)


def closed_loop(url: str, requests: Sequence[bytes], clients: int, seconds: float) -> Point:
    """Return what `clients` clients get that ask again as soon as they are answered.

    The rate is the sum of the clients': each one's answers over the time from its first answer, which is not counted,
    to its last. So it is whole questions that are measured, also where they take long or are answered in batches, and
    not the end, when some cores have nothing to do any more.

    Args:
        url: HOST:PORT of gRPC, http://HOST:PORT of HTTP.
        requests: As `requests_of` prepares them for that, an image each, sent in turn.
        clients: Requests in flight.
        seconds: No request starts after them, once each client has had its first answer; those in flight are waited
            for and count.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask(stop: threading.Event) -> Point:
        took, rates = list[float](), list[float]()
        waiting, start = clients, math.inf
        async with _asking(url, requests) as once:

            async def client() -> None:
                nonlocal waiting, start
                try:
                    await once()
                finally:
                    waiting -= 1
                    if not waiting:
                        start = time.perf_counter()
                began, answered = time.perf_counter(), 0
                while not stop.is_set() and time.perf_counter() < start + seconds:
                    took.append((await once())[0])
                    answered += 1
                rates.append(answered / (time.perf_counter() - began))

            await _all(client() for _ in range(clients))
        return _point(clients, took, sum(rates))

    with _refusals():
        return _finished(ask)


def open_loop(url: str, requests: Sequence[bytes], moments_s: Sequence[float]) -> Point:
    """Return what strangers get who ask at `moments_s` after the start, answered or not.

    Latency counts from the moment at which a request was due.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask(stop: threading.Event) -> Point:
        async with _asking(url, requests) as once:
            start = time.perf_counter()

            async def stranger(moment: float) -> float | None:
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                if stop.is_set():
                    return None
                await once()
                return time.perf_counter() - start - moment

            latencies = await _all(stranger(moment) for moment in moments_s)
            told = [one for one in latencies if one is not None]
            return _point(0, told, len(told) / (time.perf_counter() - start))

    with _refusals():
        return _finished(ask)


def pixel_rate(url: str, model: str, pixels: npt.NDArray[np.uint8], clients: int, seconds: float) -> float:
    """Return images per second in a closed loop of requests for the one image `pixels`; see `closed_loop`."""
    return closed_loop(url, [pixel_request(model, pixels)], clients, seconds).images_per_s


@asynccontextmanager
async def _asking(url: str, requests: Sequence[bytes]) -> AsyncIterator[Ask]:
    """Give a function that sends the next request; it returns how long its answer took, seconds, and the answer."""
    prepared = itertools.cycle(requests)
    async with _posting(url) if url.startswith("http") else _calling(url) as send:

        async def once() -> tuple[float, bytes]:
            start = time.perf_counter()
            answer = await send(next(prepared))
            return time.perf_counter() - start, answer

        yield once


@asynccontextmanager
async def _calling(url: str) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    async with grpc.aio.insecure_channel(url, options=_ANY_SIZE) as channel:
        # Bytes in, bytes out: what this process does is taken from the server's cores.
        yield channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


@asynccontextmanager
async def _posting(url: str) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    async with Wires(url, _MOST) as wires:

        async def send(request: bytes) -> bytes:
            reply = await wires.ask(request, _TIMEOUT_S)
            if reply.status != HTTPStatus.OK:
                said = reply.body[:200].decode(errors="replace") if reply.status else "no answer"
                raise ServerError(f"the server did not answer: {said}")
            return reply.body

        yield send


def _grpc_request(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(content)
    return bytes(request.SerializeToString())


def _http_request(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    about = {"name": name, "datatype": datatype, "shape": list(shape)}
    given = about | {"parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    headers = {"content_type": "application/octet-stream", "inference_header_content_length": len(head)}
    return post(f"/v2/models/{model}/infer", head + content, **headers)


_REQUESTS = {"gRPC": _grpc_request, "HTTP": _http_request}


async def _all(coroutines: Any) -> list[Any]:
    """Await all, also when one of them fails: gathering would leave the others' requests to be cancelled."""
    outcomes = await asyncio.gather(*coroutines, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)


def _finished(ask: Callable[[threading.Event], Coroutine[Any, Any, _T]]) -> _T:
    """Run `ask` to its end; Ctrl-C tells it to start no more requests and waits for those in flight."""
    stop = threading.Event()
    # A thread of its own: in the main one Ctrl-C would cancel what is in flight.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: asyncio.run(ask(stop)))
        try:
            return future.result()
        finally:
            stop.set()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise ServerError(f"the server did not answer: {error.details()}") from error


def _point(clients: int, latencies_s: Sequence[float], images_per_s: float) -> Point:
    if not latencies_s:
        raise ServerError("no request was answered")
    # Never a latency below the one that 99 % were not above.
    p50, p99 = np.percentile(latencies_s, (50, 99), method="higher")
    return Point(
        clients=clients,
        requests=len(latencies_s),
        images_per_s=images_per_s,
        p50_ms=1000 * float(p50),
        p99_ms=1000 * float(p99),
    )
