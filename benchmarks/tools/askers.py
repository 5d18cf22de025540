"""Clients that ask a server all the time, while something else happens to it; nothing is asked a second time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt
import tritonclient.http

from plurum.spec import INPUT_PIXELS

__all__ = ["Askers", "asked"]


class Askers:
    """Threads that ask again as soon as they are answered, for as long as a `with` block lasts.

    Args:
        ask: Asks one question, or waits a moment; called over and over.
        threads: How many do so at once.
    """

    def __init__(self, ask: Callable[[], None], threads: int) -> None:
        self._ask = ask
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._ask()


def asked(url: str, image: npt.NDArray[np.uint8], timeout_s: float, request_id: str = "") -> npt.NDArray[np.float32]:
    """Return what `ensemble_pixels` says of an image: the vote, then each member, `[1 + members, classes]`.

    Args:
        url: Of the HTTP endpoint, with scheme.
        image: uint8 `[height, width, 3]`.
        timeout_s: For the answer.
        request_id: Goes with the question.

    Raises:
        InferenceServerException: the answer is an error.
        OSError: nobody listens, or nothing came in time; likewise geventhttpclient's own errors.
    """
    tensor = tritonclient.http.InferInput(INPUT_PIXELS, [1, *image.shape], "UINT8")
    tensor.set_data_from_numpy(image[None])
    address = url.removeprefix("http://")
    with tritonclient.http.InferenceServerClient(
        address, connection_timeout=timeout_s, network_timeout=timeout_s
    ) as client:
        answer = client.infer("ensemble_pixels", [tensor], request_id=request_id)
    vote, members = answer.as_numpy("PROBABILITIES"), answer.as_numpy("MEMBER_PROBABILITIES")
    return np.concatenate([vote, members[0]])
