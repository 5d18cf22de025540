"""Addresses of servers, and the credentials sent to them."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from plurum.errors import SettingsError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = [
    "API_KEY_VARIABLE",
    "Access",
    "ServerAddress",
    "Tls",
    "WireProtocol",
    "access_from",
    "address_from_url",
    "warn_of_plain_key",
]

WireProtocol = Literal["grpc", "http"]
API_KEY_VARIABLE = "PLURUM_API_KEY"
_DEFAULT_PORTS: dict[str, int] = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_log = logging.getLogger(__name__)


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
            raise SettingsError("cert_file, key_file: expected both or neither, got only one. Give both.")

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
            raise SettingsError(f"the TLS files can't be used: {error.strerror or error}. Give PEM files.") from error
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


def access_from(api_key: str | None, tls: Tls | None, environment: Mapping[str, str] = os.environ) -> Access:
    """Return the credentials: the given key, else the one in the environment variable PLURUM_API_KEY, else none.

    Raises:
        SettingsError: the key has characters that a header can't hold.
    """
    key = (environment.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
    # The key itself is never part of a message.
    if not all("!" <= letter <= "~" for letter in key):
        raise SettingsError("api_key: expected ASCII characters without spaces, got others. Give the key as issued.")
    return Access(key or None, tls or Tls())


@dataclass(frozen=True)
class ServerAddress:
    """Address of a server.

    Attributes:
        protocol: Protocol of the server.
        address: HOST:PORT of the server.
        secure: True if the server uses TLS.
    """

    protocol: WireProtocol
    address: str
    secure: bool = False


def address_from_url(url: str | None, protocol: WireProtocol | None) -> ServerAddress:
    """Parse `host:port`, `http(s)://host:port` or `grpc(s)://host:port`; None stands for this machine.

    Raises:
        SettingsError: the URL has another form, or its scheme contradicts `protocol`.
    """
    text = url or "127.0.0.1"
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"url: expected host:port, got {url!r} ({error}).") from error
    chosen, scheme = _protocol(parts, protocol, text)
    if not host or parts.path.strip("/") or parts.query or parts.username:
        raise SettingsError(f"url: expected host:port, such as 127.0.0.1:8001, got {url!r}.")
    address = f"{f'[{host}]' if ':' in host else host}:{port or _DEFAULT_PORTS[scheme]}"
    return ServerAddress(chosen, address, scheme.endswith("s"))


def warn_of_plain_key(server: ServerAddress, access: Access) -> None:
    """Warn if a key will be sent unencrypted to another machine."""
    host = server.address.rpartition(":")[0].strip("[]")
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if access.api_key and not server.secure and not here:
        _log.warning("%s: the API key is sent without TLS; use https:// or grpcs://", server.address)


def _protocol(parts: SplitResult, protocol: WireProtocol | None, url: str) -> tuple[WireProtocol, str]:
    known: tuple[WireProtocol, ...] = ("grpc", "http")
    if protocol is not None and protocol not in known:
        raise SettingsError(f"protocol: expected 'grpc' or 'http', got {protocol!r}.")
    if not parts.scheme:
        return protocol or "grpc", protocol or "grpc"
    for name in known:
        if parts.scheme in {name, f"{name}s"} and protocol in {None, name}:
            return name, parts.scheme
    raise SettingsError(
        f"url: expected an address for {protocol or 'grpc or http'}, got {url!r}. Leave out the scheme."
    )
