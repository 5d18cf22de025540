"""Clients that ask a server again as soon as they are answered."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from plurum.spec import INPUT_PIXELS

__all__ = ["closed_loop"]


def closed_loop(url: str, model: str, pixels: npt.NDArray[np.uint8], clients: int, seconds: float) -> float:
    """Return images per second answered by `model` over gRPC to `clients` clients at once, for about `seconds`.

    One uncounted request of each comes first. All are coroutines of this process over one connection and send the
    same prepared tensor, so that asking takes little from the cores that answer.

    Args:
        url: HOST:PORT.
        model: Takes PIXELS.
        pixels: uint8 `[batch, height, width, 3]`, one request.
        clients: Requests in flight.
        seconds: No request starts after it; those in flight are waited for and counted, and so is the time they take.
    """
    return asyncio.run(_closed_loop(url, model, pixels, clients, seconds))


async def _closed_loop(url: str, model: str, pixels: npt.NDArray[np.uint8], clients: int, seconds: float) -> float:
    tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)

    async def ask_until(end: float) -> int:
        answered = 0
        while time.perf_counter() < end:
            await server.infer(model, [tensor])
            answered += 1
        return answered

    async with InferenceServerClient(url) as server:
        await asyncio.gather(*(server.infer(model, [tensor]) for _ in range(clients)))
        start = time.perf_counter()
        answered = await asyncio.gather(*(ask_until(start + seconds) for _ in range(clients)))
        elapsed = time.perf_counter() - start
    return sum(answered) * len(pixels) / elapsed
