"""Interface and shared parts of the gRPC and HTTP transports.

A transport starts calls and never waits. A call ends with a response, with `CallError` if there is none or it is an
error, or with `ServerError` if the server is not Triton.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

from plurum.client.connection.calls import Call
from plurum.conventions import MANAGERS
from plurum.errors import ServerError, SettingsError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = [
    "API_KEY_VARIABLE",
    "DEFAULT_PORTS",
    "NO_ACCESS",
    "Access",
    "CallError",
    "Fault",
    "Outputs",
    "Place",
    "Tensors",
    "Tls",
    "Transport",
    "WireProtocol",
    "access_from",
    "late_error",
    "names_from_statistics",
    "place_from_url",
    "server_error",
    "warn_of_plain_key",
]

WireProtocol = Literal["grpc", "http"]
DEFAULT_PORTS: dict[str, int] = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
API_KEY_VARIABLE = "PLURUM_API_KEY"
DATA_TYPES = {np.dtype(np.object_): "BYTES", np.dtype(np.uint8): "UINT8"}
Tensors = dict[str, npt.NDArray[Any]]


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
_log = logging.getLogger(__name__)


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
        self, model: str, name: str, tensor: npt.NDArray[Any], timeout_s: float, request_id: str = ""
    ) -> Call[Outputs]:
        """Run an inference with one input, and request all outputs."""

    def close(self, patience_s: float) -> None:
        """Close the connection; wait at most `patience_s` for calls whose cancellation could crash the server."""


@dataclass(frozen=True)
class Tls:
    """Certificates for `grpcs://` and `https://` addresses. All files are PEM.

    Attributes:
        ca_file: Certificates of trusted authorities; None trusts those of the system (https) or of gRPC.
        cert_file: The client's certificate, for servers that require one.
        key_file: Private key of the client's certificate.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise SettingsError("a certificate and its private key go together; give cert_file and key_file")

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for Python's sockets.

        Raises:
            SettingsError: a file can't be read, or is not PEM.
        """
        try:
            for file in (self.ca_file, self.cert_file, self.key_file):
                if file is not None:
                    read_regular(file, MAX_SECRET_BYTES)
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file and self.key_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            raise SettingsError(f"the TLS files can't be used: {error.strerror or error}; PEM is needed") from error
        return context


@dataclass(frozen=True)
class Access:
    """Credentials for a server.

    Attributes:
        api_key: Key sent as `Authorization: Bearer`; never shown in messages.
        tls: Certificates for TLS addresses.
    """

    api_key: str | None = field(default=None, repr=False)
    tls: Tls = Tls()

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every call, in lower case as gRPC requires."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}


NO_ACCESS = Access()


def access_from(api_key: str | None, tls: Tls | None, environment: Mapping[str, str] = os.environ) -> Access:
    """Return the credentials: the given key, else the one in the environment variable PLURUM_API_KEY, else none.

    Raises:
        SettingsError: the key has characters that a header can't hold.
    """
    key = (environment.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
    # The key itself is never part of a message.
    if not all("!" <= letter <= "~" for letter in key):
        raise SettingsError("the API key holds blanks or letters that no header can hold; give it as it was issued")
    return Access(key or None, tls or Tls())


@dataclass(frozen=True)
class Place:
    """Address of a server.

    Attributes:
        protocol: Protocol of the server.
        address: HOST:PORT of the server.
        secure: True if the server uses TLS.
    """

    protocol: WireProtocol
    address: str
    secure: bool = False


def place_from_url(url: str | None, protocol: WireProtocol | None) -> Place:
    """Parse `host:port`, `http(s)://host:port` or `grpc(s)://host:port`; None stands for this machine.

    Raises:
        SettingsError: the URL has another form, or its scheme contradicts `protocol`.
    """
    text = url or "127.0.0.1"
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is no address of a server ({error}); give host:port") from error
    chosen, scheme = _protocol(parts, protocol, text)
    if not host or parts.path.strip("/") or parts.query or parts.username:
        raise SettingsError(f"{url!r} is no address of a server; give host:port, such as 127.0.0.1:8001")
    address = f"{f'[{host}]' if ':' in host else host}:{port or DEFAULT_PORTS[scheme]}"
    return Place(chosen, address, scheme.endswith("s"))


def warn_of_plain_key(place: Place, access: Access) -> None:
    """Warn if a key will be sent unencrypted to another machine."""
    host = place.address.rpartition(":")[0].strip("[]")
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if access.api_key and not place.secure and not here:
        _log.warning("%s: the API key is sent without TLS; use https:// or grpcs://", place.address)


def server_error(transport: Transport, error: CallError) -> ServerError:
    """Return the user's error for a failed call that is not an image's fault."""
    place = transport.address
    if error.fault == "away":
        # gRPC puts the cause at the end of its message.
        cause = error.reason.rsplit(": ", 1)[-1][:200]
        name = {"grpc": "gRPC", "http": "HTTP"}[transport.protocol]
        return ServerError(
            f"no {name} server answers at {place} ({cause}); "
            "start one with: plurum serve REPO, or name another with --url"
        )
    words: dict[Fault, str] = {
        "lost": f"the server at {place} went away while it had the request ({error.reason}); it is not sent again",
        "spent": f"the server at {place} had the request and failed: {error.reason}",
        "busy": f"the server at {place} has no room: {error.reason}; ask again later, or for less at once",
        "broken": f"the server at {place} failed: {error.reason}; look at its log",
        "denied": f"the server at {place} does not let us in: {error.reason}; give its key as {API_KEY_VARIABLE}",
    }
    return ServerError(words.get(error.fault, f"the server at {place} refuses: {error.reason}"))


def late_error(transport: Transport, timeout_s: float) -> ServerError:
    """Return the user's error for a server that exceeded the time limit."""
    return ServerError(
        f"the server at {transport.address} did not answer within {timeout_s:g} s; "
        "send it fewer images at once (batch size, concurrency) or look at its log"
    )


def names_from_statistics(statistics: list[dict[str, Any]]) -> list[str]:
    """Return the names of models that classify, sorted, from Triton's statistics."""
    return sorted({model["name"] for model in statistics if model["name"] not in MANAGERS})


def _protocol(parts: SplitResult, wanted: WireProtocol | None, url: str) -> tuple[WireProtocol, str]:
    known: tuple[WireProtocol, ...] = ("grpc", "http")
    if wanted is not None and wanted not in known:
        raise SettingsError(f"protocol {wanted!r} is not known; it is 'grpc' or 'http'")
    if not parts.scheme:
        return wanted or "grpc", wanted or "grpc"
    for protocol in known:
        if parts.scheme in {protocol, f"{protocol}s"} and wanted in {None, protocol}:
            return protocol, parts.scheme
    raise SettingsError(f"{url!r} can't be asked over {wanted or 'gRPC or HTTP'}; give host:port without a scheme")
