"""Interface and shared parts of the gRPC and HTTP transports.

A transport starts calls and never waits. A call ends with a response, with `CallError` if there is none or it is an
error, or with `ServerError` if the server is not Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plurum.client.connection.addresses import API_KEY_VARIABLE, WireProtocol
from plurum.client.connection.calls import Call
from plurum.conventions import MANAGERS
from plurum.errors import ServerError

__all__ = [
    "DATA_TYPES",
    "CallError",
    "Fault",
    "Outputs",
    "Parameters",
    "Tensors",
    "Transport",
    "late_error",
    "names_from_statistics",
    "server_error",
]

DATA_TYPES = {np.dtype(np.object_): "BYTES", np.dtype(np.uint8): "UINT8"}
Tensors = dict[str, npt.NDArray[Any]]
Parameters = Mapping[str, str | bool]


class Outputs(NamedTuple):
    """Outputs of a model.

    Attributes:
        tensors: Output tensors by name.
        version: Version of the model, as Triton states it.
    """

    tensors: Tensors
    version: str


# refused: the request is invalid. missing: no such model. busy: the server is full. broken: the server failed.
# denied: the client lacks permission. away: the request did not reach a server. lost: the server received the request
# and disconnected. spent: the server received the request, failed, and states that it must not be sent again.
Fault = Literal["refused", "missing", "busy", "broken", "denied", "away", "lost", "spent"]


class CallError(Exception):
    """A call ended without a usable response.

    Attributes:
        reason: One-line message from the server or the network.
        fault: Kind of the failure; see `Fault`.
        wait_s: Time after which the server permits a retry, seconds; 0 if it states none.
    """

    def __init__(self, reason: str, fault: Fault, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:1000]
        self.fault = fault
        self.wait_s = wait_s


class Transport(Protocol):
    """Interface of a protocol; several threads may start calls at once.

    `timeout_s` is the caller's remaining time, for protocols that can close a connection safely.
    """

    protocol: ClassVar[WireProtocol]
    address: str

    def live(self, timeout_s: float) -> Call[bool]:
        """Return a call that is True if the server reports that it is alive."""

    def metadata(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """Request a model's inputs and outputs, as JSON of Triton's metadata extension."""

    def config(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """Request a model's configuration, as JSON with the fields of `config.pbtxt`."""

    def models(self, timeout_s: float) -> Call[list[str]]:
        """Request the names of the loaded models, sorted; uses statistics, because the index is often restricted."""

    def infer(
        self,
        model: str,
        name: str,
        tensor: npt.NDArray[Any],
        timeout_s: float,
        request_id: str = "",
        parameters: Parameters | None = None,
    ) -> Call[Outputs]:
        """Run an inference with one input, and request all outputs."""

    def close(self, patience_s: float) -> None:
        """Close the connection; wait at most `patience_s` for calls whose cancellation could crash the server."""


def server_error(transport: Transport, error: CallError) -> ServerError:
    """Return the user's error for a failed call that is not an image's fault."""
    server = f"the server at {transport.address}"
    if error.fault == "away":
        # gRPC puts the cause at the end of its message.
        cause = error.reason.rsplit(": ", 1)[-1][:200]
        name = {"grpc": "gRPC", "http": "HTTP"}[transport.protocol]
        return ServerError(
            f"no {name} server responds at {transport.address} ({cause}). "
            "Start one with plurum serve REPO, or give another address with --url."
        )
    messages: dict[Fault, str] = {
        "lost": f"{server} disconnected after it received the request ({error.reason}). It is not sent again.",
        "spent": f"{server} received the request and failed: {error.reason}",
        "busy": f"{server} is full: {error.reason}. Try again later, or send fewer requests at once.",
        "broken": f"{server} failed: {error.reason}. See its log.",
        "denied": f"{server} denies access: {error.reason}. Give its key as {API_KEY_VARIABLE}.",
    }
    return ServerError(messages.get(error.fault, f"{server} refuses the request: {error.reason}"))


def late_error(transport: Transport, timeout_s: float) -> ServerError:
    """Return the user's error for a server that exceeded the time limit."""
    return ServerError(
        f"the server at {transport.address} did not respond within {timeout_s:g} s. "
        "Send fewer images at once (batch size, concurrency), or see its log."
    )


def names_from_statistics(statistics: list[dict[str, Any]]) -> list[str]:
    """Return the names of models that classify, sorted, from Triton's statistics."""
    return sorted({model["name"] for model in statistics if model["name"] not in MANAGERS})
