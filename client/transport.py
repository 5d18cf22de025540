"""What both ways to a server, gRPC and HTTP, have in common.

A transport begins calls and never waits: each ends with an answer, with `CallError` when there was none or the server
answered with an error, or with `ServerError` when what answers is no Triton.
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

from plurum.client.calls import Call
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
    """What a model answers.

    Attributes:
        tensors: By name.
        version: Of the model that answered, as Triton says.
    """

    tensors: Tensors
    version: str


# refused: what was asked can't be answered. missing: no such model. busy: not now. broken: the server failed.
# denied: not by us. away: the request did not reach a server. lost: a server had it, and went away before an answer.
# spent: likewise, and the server says that it must not be sent again.
Fault = Literal["refused", "missing", "busy", "broken", "denied", "away", "lost", "spent"]
_log = logging.getLogger(__name__)


class CallError(Exception):
    """A call that ended without an answer.

    Attributes:
        reason: The server's words or the network's, in one line.
        fault: Whose it is; see `Fault`.
        wait_s: How long the server asks to be left alone; 0 where it does not say.
    """

    def __init__(self, reason: str, fault: Fault, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:1000]
        self.fault = fault
        self.wait_s = wait_s


class Transport(Protocol):
    """What a client needs of a protocol; calls may be begun from several threads at once.

    `timeout_s` is what is left to whoever asks, for protocols that can hang up.
    """

    protocol: ClassVar[WireProtocol]
    address: str

    def live(self, timeout_s: float) -> Call[bool]:
        """Whether the server says that it lives."""

    def metadata(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """A model's inputs and outputs, as Triton's metadata extension has them in JSON."""

    def config(self, model: str, timeout_s: float) -> Call[dict[str, Any]]:
        """A model's configuration, as `config.pbtxt` has it in JSON."""

    def models(self, timeout_s: float) -> Call[list[str]]:
        """The names of the models that are loaded, sorted; the index of the repository is often kept shut."""

    def infer(
        self, model: str, name: str, tensor: npt.NDArray[Any], timeout_s: float, request_id: str = ""
    ) -> Call[Outputs]:
        """All outputs by name for one input."""

    def close(self, patience_s: float) -> None:
        """Let go of the connection, after waiting so long at most for calls whose end could hurt the server."""


@dataclass(frozen=True)
class Tls:
    """Whom to believe, and who we are, on a `grpcs://` or `https://` address. All files are PEM.

    Attributes:
        ca_file: Certificates of the authorities to believe; None believes those that the system (https) or gRPC knows.
        cert_file: Our own certificate, for servers that ask for one.
        key_file: Its private key.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise SettingsError("a certificate and its private key go together; give cert_file and key_file")

    def context(self) -> ssl.SSLContext:
        """Return what Python's sockets need.

        Raises:
            SettingsError: a file can't be read, or holds no PEM.
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
    """What a server wants to see.

    Attributes:
        api_key: Sent as `Authorization: Bearer`; shown nowhere.
        tls: For addresses that are asked over TLS.
    """

    api_key: str | None = field(default=None, repr=False)
    tls: Tls = Tls()

    @property
    def headers(self) -> dict[str, str]:
        """Those of every call; lower case, as gRPC wants them."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}


NO_ACCESS = Access()


def access_from(api_key: str | None, tls: Tls | None, environment: Mapping[str, str] = os.environ) -> Access:
    """Return what to show a server: the key given, else that of the environment's PLURUM_API_KEY, else none.

    Raises:
        SettingsError: a key that no header can hold.
    """
    key = (environment.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
    # The key itself is never part of a message.
    if not all("!" <= letter <= "~" for letter in key):
        raise SettingsError("the API key holds blanks or letters that no header can hold; give it as it was issued")
    return Access(key or None, tls or Tls())


@dataclass(frozen=True)
class Place:
    """Where a server is.

    Attributes:
        protocol: Spoken there.
        address: HOST:PORT.
        secure: Over TLS.
    """

    protocol: WireProtocol
    address: str
    secure: bool = False


def place_from_url(url: str | None, protocol: WireProtocol | None) -> Place:
    """Return where `host:port`, `http(s)://host:port` or `grpc(s)://host:port` leads; without one, this machine.

    Raises:
        SettingsError: the URL is none of these, or its scheme isn't the protocol asked for.
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
    """Log that a key is about to leave this machine for everyone on the way to read."""
    host = place.address.rpartition(":")[0].strip("[]")
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if access.api_key and not place.secure and not here:
        _log.warning("%s: the API key is sent without TLS; use https:// or grpcs://", place.address)


def server_error(transport: Transport, error: CallError) -> ServerError:
    """Return the line for people about a call that failed through no image's fault."""
    place = transport.address
    if error.fault == "away":
        # gRPC puts the cause last, behind the story of how it was found.
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
    """Return the line for people about a server that took too long."""
    return ServerError(
        f"the server at {transport.address} did not answer within {timeout_s:g} s; "
        "send it fewer images at once (batch size, concurrency) or look at its log"
    )


def names_from_statistics(statistics: list[dict[str, Any]]) -> list[str]:
    """Return the names of models that classify, sorted, from what Triton's statistics extension says."""
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
