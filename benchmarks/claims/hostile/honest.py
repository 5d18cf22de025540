"""Clients that send known images at a steady pace, each over a connection of its own, and know the right responses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plurum.benchmarks.claims.hostile.wires import Place

__all__ = ["HonestClient", "Seen", "honest_clients"]

_PACE_S, _DEADLINE_S, _TOLERANCE = 0.05, 10.0, 1e-4
_VOLATILE = re.compile(rb'href="[^"]*"')
Answer = Any


@dataclass(frozen=True)
class Seen:
    """One request of an honest client, with all that it took to get a response.

    Attributes:
        client: Which one.
        start_s: When it was first sent, on the clock of `time.monotonic`.
        end_s: When the response was there.
        failures: How often it was sent again, because an error came or nothing.
        is_right: Whether the response is the expected one.
        reason: Why the last try failed, if one did.
    """

    client: str
    start_s: float
    end_s: float
    failures: int
    is_right: bool
    reason: str = ""


class HonestClient:
    """Asks the same server about images in turn.

    Args:
        name: Of the client.
        ask: Sends an image, and returns the response; raises what it likes where none comes.
        images: JPEG files.
    """

    def __init__(self, name: str, ask: Callable[[bytes], Answer], images: list[bytes]) -> None:
        self.name, self._ask, self._images = name, ask, images
        self._expected: list[Answer] = []
        self._turn = 0

    def learn(self, truth: list[np.ndarray[Any, Any]] | None = None) -> list[Answer]:
        """Take the responses of now as the expected ones; return them.

        Raises:
            AssertionError: they are not `truth`.
        """
        for _ in range(2):
            # The page says another word about an image that it has seen before.
            self._expected = [self._ask(image) for image in self._images]
        if truth is not None and not all(map(_agree, self._expected, truth)):
            raise AssertionError(f"{self.name}: responses differ from those of Triton before anything was attacked")
        return self._expected

    def once(self, is_over: Callable[[], bool]) -> Seen | None:
        """Get one response, however often that takes; return None where it is over before."""
        time.sleep(_PACE_S)
        self._turn = (self._turn + 1) % len(self._images)
        start, failures, reason = time.monotonic(), 0, ""
        while not is_over():
            try:
                answer = self._ask(self._images[self._turn])
            except Exception as error:
                failures, reason = failures + 1, f"{type(error).__name__}: {error}"[:200]
                time.sleep(_PACE_S)
                continue
            is_right = _agree(answer, self._expected[self._turn])
            return Seen(self.name, start, time.monotonic(), failures, is_right, reason)
        return None


def honest_clients(places: dict[str, Place], key: str, images: list[bytes]) -> list[HonestClient]:
    """Return a client of each target, which has learnt the right responses.

    Raises:
        AssertionError: targets disagree before anything was attacked.
    """
    triton = HonestClient("Triton, gRPC", _over_grpc(places["grpc"]), images)
    truth = triton.learn()
    clients = [
        HonestClient("Triton, HTTP", _over_triton_http(places["http"]), images),
        HonestClient("gateway", _over_gateway(places["gateway"], ""), images),
        HonestClient("gateway, TLS", _over_gateway(places["gateway-tls"], key), images),
    ]
    for client in clients:
        client.learn(truth)
    page = HonestClient("page", _over_page(places["page"]), images)
    page.learn()
    return [triton, *clients, page]


def _agree(answer: Answer, expected: Answer) -> bool:
    if isinstance(answer, bytes):
        return bool(answer == expected)
    return answer.shape == expected.shape and bool(np.abs(answer - expected).max() <= _TOLERANCE)


class _Http:
    """A connection that is kept, and made again where it broke."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        if self._connection is None:
            self._connection = self._new()
        try:
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except BaseException:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None
            raise
        if response.status != 200:
            raise OSError(f"{response.status} {answer[:150]!r}")
        return answer

    def _new(self) -> http.client.HTTPConnection:
        if not self._place.tls:
            return http.client.HTTPConnection("127.0.0.1", self._place.port, timeout=_DEADLINE_S)
        context = ssl._create_unverified_context()  # noqa: S323 (the certificate is the script's own)
        return http.client.HTTPSConnection("127.0.0.1", self._place.port, timeout=_DEADLINE_S, context=context)


def _over_gateway(place: Place, key: str) -> Callable[[bytes], Answer]:
    wire, headers = _Http(place), {"authorization": f"Bearer {key}"} if key else {}

    def ask(image: bytes) -> Answer:
        answer = json.loads(wire.post("/predict", image, headers))
        return np.array(list(answer["probabilities"].values()))

    return ask


def _over_triton_http(place: Place) -> Callable[[bytes], Answer]:
    wire = _Http(place)

    def ask(image: bytes) -> Answer:
        tensor = {
            "name": "IMAGE",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(image) + 4},
        }
        head = json.dumps({"inputs": [tensor], "outputs": [{"name": "PROBABILITIES"}]}).encode()
        body = head + struct.pack("<I", len(image)) + image
        answer = wire.post("/v2/models/ensemble/infer", body, {"inference-header-content-length": str(len(head))})
        return np.array(json.loads(answer)["outputs"][0]["data"])

    return ask


def _over_grpc(place: Place) -> Callable[[bytes], Answer]:
    from tritonclient import grpc

    # gRPC's own backoff would find a restarted server seconds later.
    backoff = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    client = grpc.InferenceServerClient(f"127.0.0.1:{place.port}", channel_args=backoff)

    def ask(image: bytes) -> Answer:
        tensor = grpc.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        wanted = [grpc.InferRequestedOutput("PROBABILITIES")]
        return client.infer("ensemble", [tensor], outputs=wanted, client_timeout=_DEADLINE_S).as_numpy("PROBABILITIES")[
            0
        ]

    return ask


def _over_page(place: Place) -> Callable[[bytes], Answer]:
    wire = _Http(place)

    def ask(image: bytes) -> Answer:
        return _VOLATILE.sub(b"", wire.post("/answers", image, {"x-file-name": "honest.jpg"}))

    return ask
