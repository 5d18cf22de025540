"""Clients of an ensemble that keep requests in flight, or send them at given moments: rates and latencies.

All clients are coroutines of one thread, so that they take little from the server's cores: over gRPC on one connection,
over HTTP, which takes even less, on one connection for each request in flight. Requests are prepared before, sent in
turn, and never cancelled: whatever ends a measurement waits for the requests in flight.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import grpc.aio
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult
from tritonclient.grpc import service_pb2 as pb

from plurum.benchmarks.tools.requests import bytes_element, decode_pixels
from plurum.benchmarks.tools.wire import HttpConnections, post
from plurum.conventions import FULL
from plurum.errors import ServerError
from plurum.spec import IMAGE, INPUT_PIXELS, ImageSpec, Metadata

__all__ = [
    "LoadFigures",
    "Protocol",
    "Request",
    "average_of",
    "closed_loop",
    "member_probabilities",
    "open_loop",
    "open_sender",
    "pixel_rate",
    "pixel_request",
    "requests_of",
    "responses",
    "time_closed_loop",
]

Protocol = Literal["gRPC", "HTTP"]
# A prepared request, or a function that prepares it when it is sent, so that preparing counts as latency.
Request = bytes | Callable[[], bytes]
# Sends the next request; returns how long the response took, seconds, and the response.
Send = Callable[[], Awaitable[tuple[float, bytes]]]
_T = TypeVar("_T")
_ANY_SIZE = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
_FIGURES = ("images_per_s", "p50_ms", "p99_ms")
# Requests in flight over HTTP; none waits for a connection.
_MOST, _TIMEOUT_S = 4096, 100.0


class LoadFigures(Metadata):
    """Figures of a server under one load.

    Attributes:
        clients: Requests in flight; 0 if they were sent at given moments.
        requests: Number of responses, one image each.
        images_per_s: Responses per second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency; of less than 100 requests the longest.
    """

    clients: int
    requests: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


def average_of(
    turns: Sequence[LoadFigures], average: Callable[[Iterable[float]], float] = statistics.fmean
) -> LoadFigures:
    """Return the mean figures of turns at the same load, or another average, with the number of all their requests."""
    figures = {name: average([getattr(one, name) for one in turns]) for name in _FIGURES}
    return LoadFigures(clients=turns[0].clients, requests=sum(one.requests for one in turns), **figures)


def requests_of(
    images: Sequence[bytes], spec: ImageSpec, model: str, over: Protocol = "gRPC", *, each: int = 1
) -> list[bytes]:
    """Return prepared requests that hold `each` encoded images in turn; `each` must divide their number.

    The model `ensemble` receives the images as they are, any other model their pixels.
    """
    groups = [images[start : start + each] for start in range(0, len(images), each)]
    if model != "ensemble":
        return [pixel_request(model, np.stack([decode_pixels(one, spec) for one in group]), over) for group in groups]
    raw = [b"".join(map(bytes_element, group)) for group in groups]
    return [_REQUESTS[over](model, IMAGE, "BYTES", (each, 1), content) for content in raw]


def pixel_request(model: str, pixels: npt.NDArray[np.uint8], over: Protocol = "gRPC") -> bytes:
    """Return the prepared request of a `model` that takes PIXELS for `pixels`, uint8 `[batch, height, width, 3]`."""
    return _REQUESTS[over](model, INPUT_PIXELS, "UINT8", pixels.shape, pixels.tobytes())


def responses(url: str, requests: Sequence[Request]) -> list[bytes]:
    """Send each request once, one after the other, and return the responses.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """

    async def send_each(_: threading.Event) -> list[bytes]:
        async with open_sender(url, requests) as send:
            return [(await send())[1] for _ in requests]

    return _run(send_each)


def member_probabilities(url: str, requests: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Return the probabilities of every member for each request over gRPC, `[requests, members, classes]`.

    All members of a cascade run.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """
    full = pb.ModelInferRequest()
    full.parameters[FULL].bool_param = True
    # Concatenated protobuf messages form one message.
    whole = [one + full.SerializeToString() for one in requests]
    results = [InferResult(pb.ModelInferResponse.FromString(one)) for one in responses(url, whole)]
    return np.concatenate([one.as_numpy("MEMBER_PROBABILITIES") for one in results])


def time_closed_loop(url: str, requests: Sequence[Request], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Return responses per second, and the latency of each, seconds, of clients that each have a request in flight.

    A client sends the next request as soon as it has a response.

    The rate is the sum over clients: the responses of a client over the time from its first response, which does not
    count, to its last. So the rate counts whole requests, also if they take long or are computed in batches. The end,
    when some cores are idle, does not count.

    Args:
        url: HOST:PORT of gRPC, http://HOST:PORT of HTTP.
        requests: Requests for that protocol, one image each, sent in turn.
        clients: Requests in flight.
        seconds: Time after which no request starts, from when every client has had its first response. Requests in
            flight are waited for and count.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """

    async def send_all(stop: threading.Event) -> tuple[float, list[float]]:
        latencies, rates = list[float](), list[float]()
        waiting, start = clients, math.inf
        async with open_sender(url, requests) as send:

            async def run_client() -> None:
                nonlocal waiting, start
                try:
                    await send()
                finally:
                    waiting -= 1
                    if not waiting:
                        start = time.perf_counter()
                first, count = time.perf_counter(), 0
                while not stop.is_set() and time.perf_counter() < start + seconds:
                    latencies.append((await send())[0])
                    count += 1
                rates.append(count / (time.perf_counter() - first))

            await _wait_for_all(run_client() for _ in range(clients))
        return sum(rates), latencies

    return _run(send_all)


def closed_loop(url: str, requests: Sequence[Request], clients: int, seconds: float) -> LoadFigures:
    """Return the figures of a closed loop; arguments and errors are those of `time_closed_loop`."""
    return _figures(clients, *time_closed_loop(url, requests, clients, seconds))


def open_loop(url: str, requests: Sequence[Request], moments_s: Sequence[float]) -> LoadFigures:
    """Return the figures of requests that are sent at `moments_s` after the start, without waiting for responses.

    Latency counts from the moment at which a request was due.

    Raises:
        ServerError: The server refuses a request, or is not reachable.
    """

    async def send_all(stop: threading.Event) -> tuple[float, list[float]]:
        async with open_sender(url, requests) as send:
            start = time.perf_counter()

            async def send_at(moment: float) -> float | None:
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                if stop.is_set():
                    return None
                await send()
                return time.perf_counter() - start - moment

            outcomes = await _wait_for_all(send_at(moment) for moment in moments_s)
            latencies = [one for one in outcomes if one is not None]
            return len(latencies) / (time.perf_counter() - start), latencies

    return _figures(0, *_run(send_all))


def pixel_rate(url: str, model: str, pixels: npt.NDArray[np.uint8], clients: int, seconds: float) -> float:
    """Return images per second of a closed loop of requests for the one image `pixels`; see `time_closed_loop`."""
    return closed_loop(url, [pixel_request(model, pixels)], clients, seconds).images_per_s


@asynccontextmanager
async def open_sender(url: str, requests: Sequence[Request]) -> AsyncIterator[Send]:
    """Connect to a server and give a function that sends the next request."""
    prepared = itertools.cycle(requests)
    async with _connect_http(url) if url.startswith("http") else _connect_grpc(url) as send_bytes:

        async def send() -> tuple[float, bytes]:
            request, start = next(prepared), time.perf_counter()
            response = await send_bytes(request if isinstance(request, bytes) else request())
            return time.perf_counter() - start, response

        yield send


@asynccontextmanager
async def _connect_grpc(url: str) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    async with grpc.aio.insecure_channel(url, options=_ANY_SIZE) as channel:
        # No (de)serialisation: what this process computes is taken from the server's cores.
        yield channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


@asynccontextmanager
async def _connect_http(url: str) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    async with HttpConnections(url, _MOST) as connections:

        async def send(request: bytes) -> bytes:
            response = await connections.send(request, _TIMEOUT_S)
            if response.status != HTTPStatus.OK:
                text = response.body[:200].decode(errors="replace")
                reason = f"HTTP {response.status}: {text}" if response.status else text or "no response"
                raise ServerError(f"request failed: {reason}")
            return response.body

        yield send


def _grpc_request(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(content)
    return bytes(request.SerializeToString())


def _http_request(model: str, name: str, datatype: str, shape: Sequence[int], content: bytes) -> bytes:
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"content_type": "application/octet-stream", "inference_header_content_length": len(head)}
    return post(f"/v2/models/{model}/infer", head + content, **headers)


_REQUESTS = {"gRPC": _grpc_request, "HTTP": _http_request}


async def _wait_for_all(coroutines: Any) -> list[Any]:
    """Await all, also when one of them fails: gather alone would leave the others' requests to be cancelled."""
    outcomes = await asyncio.gather(*coroutines, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)


def _run(main: Callable[[threading.Event], Coroutine[Any, Any, _T]]) -> _T:
    """Run `main` to its end; Ctrl-C tells it to start no more requests and waits for those in flight."""
    stop = threading.Event()
    # A thread of its own: in the main thread Ctrl-C would cancel the requests in flight.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: asyncio.run(main(stop)))
        try:
            return future.result()
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"request failed: {error.details()}") from error
        finally:
            stop.set()


def _figures(clients: int, per_s: float, latencies_s: list[float]) -> LoadFigures:
    if not latencies_s:
        raise ServerError("the server answered no request")
    # Never a latency below the one that 99 % were not above.
    p50_ms, p99_ms = (1000 * float(one) for one in np.percentile(latencies_s, (50, 99), method="higher"))
    return LoadFigures(clients=clients, requests=len(latencies_s), images_per_s=per_s, p50_ms=p50_ms, p99_ms=p99_ms)
