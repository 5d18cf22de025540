"""Clients of an ensemble that ask again as soon as they are answered, or at given moments: rates and latencies.

All are coroutines of one thread over one connection, so that asking takes little from the cores that answer. Requests
are prepared before, sent in turn, and never cancelled: whatever ends a measurement, those in flight are waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from plurum.errors import ServerError
from plurum.images import open_image, pixels_from_image
from plurum.spec import IMAGE, INPUT_PIXELS, Contract, ImageSpec

__all__ = ["Point", "answers", "closed_loop", "mean_of", "open_loop", "requests_of"]

Ask = Callable[[], Awaitable[float]]
_T = TypeVar("_T")
_FIGURES = ("images_per_s", "p50_ms", "p99_ms")


class Point(Contract):
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


def requests_of(images: Sequence[bytes], spec: ImageSpec, model: str) -> list[Any]:
    """Return a prepared request for each encoded image: as it is for `ensemble`, as pixels for any other model."""
    prepared = []
    for image in images:
        if model == "ensemble":
            tensor = InferInput(IMAGE, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        else:
            pixels = pixels_from_image(
                open_image(image), height=spec.height, width=spec.width, colour=spec.colour, resize=spec.resize
            )[None]
            tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels)
        prepared.append(tensor)
    return prepared


def answers(url: str, model: str, requests: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return what every member says to each request, `[requests, members, classes]`.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask_each(_: threading.Event) -> npt.NDArray[np.float32]:
        async with InferenceServerClient(url) as server:
            found = [(await server.infer(model, [one])).as_numpy("MEMBER_PROBABILITIES") for one in requests]
        return np.concatenate(found)

    with _refusals():
        return _finished(ask_each)


def closed_loop(url: str, model: str, requests: Sequence[Any], clients: int, seconds: float) -> Point:
    """Return what `clients` clients get that ask again as soon as they are answered.

    Args:
        url: HOST:PORT of gRPC.
        model: Triton's name.
        requests: As `requests_of` prepares them, sent in turn.
        clients: Requests in flight.
        seconds: No request starts after it; those in flight are waited for and counted, and so is the time they take.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask(stop: threading.Event) -> Point:
        async with _asking(url, model, requests) as once:
            start = time.perf_counter()

            async def client() -> list[float]:
                mine = []
                while time.perf_counter() < start + seconds and not stop.is_set():
                    mine.append(await once())
                return mine

            latencies = await _all(client() for _ in range(clients))
            return _point(clients, [one for mine in latencies for one in mine], time.perf_counter() - start)

    with _refusals():
        return _finished(ask)


def open_loop(url: str, model: str, requests: Sequence[Any], moments_s: Sequence[float]) -> Point:
    """Return what strangers get who ask at `moments_s` after the start, answered or not.

    Latency counts from the moment at which a request was due.

    Raises:
        ServerError: the server refuses, or is away.
    """

    async def ask(stop: threading.Event) -> Point:
        async with _asking(url, model, requests) as once:
            start = time.perf_counter()

            async def stranger(moment: float) -> float | None:
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                if stop.is_set():
                    return None
                await once()
                return time.perf_counter() - start - moment

            latencies = await _all(stranger(moment) for moment in moments_s)
            told = [one for one in latencies if one is not None]
            return _point(0, told, time.perf_counter() - start)

    with _refusals():
        return _finished(ask)


class _asking:  # noqa: N801 - reads as a context manager
    """Gives a function that sends the next request and returns how long its answer took, seconds."""

    def __init__(self, url: str, model: str, requests: Sequence[Any]) -> None:
        self._url, self._model, self._next = url, model, itertools.cycle(requests)

    async def __aenter__(self) -> Ask:
        self._server = InferenceServerClient(self._url)
        return self._once

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def _once(self) -> float:
        start = time.perf_counter()
        await self._server.infer(self._model, [next(self._next)])
        return time.perf_counter() - start


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
    except InferenceServerException as error:
        raise ServerError(f"the server did not answer: {error.message()}") from error


def _point(clients: int, latencies_s: Sequence[float], elapsed_s: float) -> Point:
    if not latencies_s:
        raise ServerError("no request was answered")
    # Never a latency below the one that 99 % were not above.
    p50, p99 = np.percentile(latencies_s, (50, 99), method="higher")
    return Point(
        clients=clients,
        requests=len(latencies_s),
        images_per_s=len(latencies_s) / elapsed_s,
        p50_ms=1000 * float(p50),
        p99_ms=1000 * float(p99),
    )
