"""Clients that send known images at a steady pace, each over its own connection, and know the correct responses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plurum.benchmarks.claims.hostile.wires import ServerPort
from plurum.benchmarks.tools.requests import bytes_element

__all__ = ["HonestClient", "HonestRequest", "honest_clients"]

_PACE_S, _DEADLINE_S, _TOLERANCE = 0.05, 10.0, 1e-4
_VOLATILE = re.compile(rb'href="[^"]*"')
Response = Any


@dataclass(frozen=True)
class HonestRequest:
    """One request of an honest client, with all its tries.

    Attributes:
        client: Name of the client.
        start_s: Time of the first try, on the clock of `time.monotonic`.
        end_s: Time of the response.
        failures: Number of tries that had an error or no response.
        is_right: True if the response is the expected one.
        reason: Reason why the last failed try failed; empty if none did.
    """

    client: str
    start_s: float
    end_s: float
    failures: int
    is_right: bool
    reason: str = ""


class HonestClient:
    """Sends images in turn to the same server.

    Args:
        name: Name of the client.
        send: Function that sends an image and returns the response; it raises any error if there is none.
        images: JPEG files.
    """

    def __init__(self, name: str, send: Callable[[bytes], Response], images: list[bytes]) -> None:
        self.name, self._send, self._images = name, send, images
        self._expected: list[Response] = []
        self._turn = 0

    def learn(self, truth: list[np.ndarray[Any, Any]] | None = None) -> list[Response]:
        """Store the present responses as the expected ones, and return them.

        Raises:
            AssertionError: The responses differ from `truth`.
        """
        for _ in range(2):
            # The page shows another text for an image that it has seen before.
            self._expected = [self._send(image) for image in self._images]
        if truth is not None and not all(map(_agree, self._expected, truth)):
            raise AssertionError(f"{self.name}: responses differ from those of Triton before anything was attacked")
        return self._expected

    def send_until_answered(self, is_over: Callable[[], bool]) -> HonestRequest | None:
        """Send a request until it gets a response; return None if the campaign is over before."""
        time.sleep(_PACE_S)
        self._turn = (self._turn + 1) % len(self._images)
        start, failures, reason = time.monotonic(), 0, ""
        while not is_over():
            try:
                response = self._send(self._images[self._turn])
            except Exception as error:
                failures, reason = failures + 1, f"{type(error).__name__}: {error}"[:200]
                time.sleep(_PACE_S)
                continue
            is_right = _agree(response, self._expected[self._turn])
            return HonestRequest(self.name, start, time.monotonic(), failures, is_right, reason)
        return None


def honest_clients(places: dict[str, ServerPort], key: str, images: list[bytes]) -> list[HonestClient]:
    """Return a client of each target, which has learnt the correct responses.

    Raises:
        AssertionError: Targets disagree before anything is attacked.
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


def _agree(response: Response, expected: Response) -> bool:
    if isinstance(response, bytes):
        return bool(response == expected)
    return response.shape == expected.shape and bool(np.abs(response - expected).max() <= _TOLERANCE)


class _Http:
    """A connection that is kept, and opened again after it broke."""

    def __init__(self, place: ServerPort) -> None:
        self._place = place
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        if self._connection is None:
            self._connection = self._new()
        try:
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            body = response.read()
        except BaseException:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None
            raise
        if response.status != 200:
            raise OSError(f"{response.status} {body[:150]!r}")
        return body

    def _new(self) -> http.client.HTTPConnection:
        if not self._place.tls:
            return http.client.HTTPConnection("127.0.0.1", self._place.port, timeout=_DEADLINE_S)
        context = ssl._create_unverified_context()  # noqa: S323 (the certificate is the script's own)
        return http.client.HTTPSConnection("127.0.0.1", self._place.port, timeout=_DEADLINE_S, context=context)


def _over_gateway(place: ServerPort, key: str) -> Callable[[bytes], Response]:
    wire, headers = _Http(place), {"authorization": f"Bearer {key}"} if key else {}

    def send(image: bytes) -> Response:
        response = json.loads(wire.post("/predict", image, headers))
        return np.array(list(response["probabilities"].values()))

    return send


def _over_triton_http(place: ServerPort) -> Callable[[bytes], Response]:
    wire = _Http(place)

    def send(image: bytes) -> Response:
        element = bytes_element(image)
        tensor = {
            "name": "IMAGE",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(element)},
        }
        head = json.dumps({"inputs": [tensor], "outputs": [{"name": "PROBABILITIES"}]}).encode()
        size = {"inference-header-content-length": str(len(head))}
        response = wire.post("/v2/models/ensemble/infer", head + element, size)
        return np.array(json.loads(response)["outputs"][0]["data"])

    return send


def _over_grpc(place: ServerPort) -> Callable[[bytes], Response]:
    from tritonclient import grpc

    # gRPC's own backoff would find a restarted server seconds later.
    backoff = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    client = grpc.InferenceServerClient(f"127.0.0.1:{place.port}", channel_args=backoff)

    def send(image: bytes) -> Response:
        tensor = grpc.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        outputs = [grpc.InferRequestedOutput("PROBABILITIES")]
        result = client.infer("ensemble", [tensor], outputs=outputs, client_timeout=_DEADLINE_S)
        return result.as_numpy("PROBABILITIES")[0]

    return send


def _over_page(place: ServerPort) -> Callable[[bytes], Response]:
    wire = _Http(place)

    def send(image: bytes) -> Response:
        return _VOLATILE.sub(b"", wire.post("/answers", image, {"x-file-name": "honest.jpg"}))

    return send
