"""Clients that send requests to a server continuously while something else happens to it; nothing is sent again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import tritonclient.http

from plurum.spec import INPUT_PIXELS

__all__ = ["background_clients", "request_probabilities"]


@contextmanager
def background_clients(send: Callable[[], None], threads: int) -> Iterator[None]:
    """Let threads call `send`, which sends a request and waits for the response, again and again in a `with` block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            send()

    with ThreadPoolExecutor(threads) as pool:
        clients = [pool.submit(run) for _ in range(threads)]
        try:
            yield
        finally:
            ended.set()
    for client in clients:
        client.result()


def request_probabilities(
    url: str, image: npt.NDArray[np.uint8], timeout_s: float, request_id: str = ""
) -> npt.NDArray[np.float32]:
    """Request a prediction of `ensemble_pixels` and return the vote, then each member, `[1 + members, classes]`.

    Args:
        url: URL of Triton's HTTP endpoint, with scheme.
        image: Image, uint8 `[height, width, 3]`.
        timeout_s: Longest wait for the response, seconds.
        request_id: Id of the request.

    Raises:
        InferenceServerException: The response is an error.
        OSError: Nothing listens at the URL, or no response came in time. Errors of geventhttpclient are raised too.
    """
    tensor = tritonclient.http.InferInput(INPUT_PIXELS, [1, *image.shape], "UINT8")
    tensor.set_data_from_numpy(image[None])
    address = url.removeprefix("http://")
    with tritonclient.http.InferenceServerClient(
        address, connection_timeout=timeout_s, network_timeout=timeout_s
    ) as client:
        response = client.infer("ensemble_pixels", [tensor], request_id=request_id)
    vote, members = response.as_numpy("PROBABILITIES"), response.as_numpy("MEMBER_PROBABILITIES")
    return np.concatenate([vote, members[0]])
