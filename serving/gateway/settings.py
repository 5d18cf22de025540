"""Settings of a gateway, and its listening sockets."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plurum.errors import ServerError, SettingsError

__all__ = ["COPIES", "GatewaySettings", "is_loopback", "open_listener", "settings_from_options"]

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Copies of a body in memory on its way to Triton: as received, as a message, and in gRPC's buffers.
COPIES = 3
# HOST:PORT, or a Unix socket in gRPC's notation.
_TARGET = re.compile(r"unix:\S+|(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}")


class GatewaySettings(BaseModel):
    """Options of `plurum gateway`.

    Attributes:
        triton: Triton's gRPC address: HOST:PORT or unix:PATH.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free port.
        metrics_host: Address of /metrics, which has a separate port. The default is this machine only: the page shows
            the clients' names and request counts, and Prometheus sends no key.
        metrics_port: Port of /metrics; 0 picks a free port.
        keys: File with the clients' keys; None accepts requests without a key.
        tls_cert: Certificate chain, PEM; None serves plain HTTP.
        tls_key: Private key of the certificate, PEM.
        max_in_flight: Maximum number of requests in progress on Triton.
        max_waiting: Maximum number of waiting requests; further requests are refused at once.
        longest_wait_s: Refuse requests whose expected response time exceeds this, seconds. Bulk requests are exempt.
        max_connections: Maximum number of open connections; further connections are closed at once.
        max_body_mib: Maximum size of one request body, MiB.
        max_buffered_mib: Memory for the bodies of all requests with their copies, MiB.
        max_files: Maximum number of images in one request to /predict.
        deadline_s: RequestDeadline of requests that state none, seconds.
        max_deadline_s: Maximum deadline that a request may state, seconds.
        receive_s: Maximum time for a request to arrive, seconds; its head must arrive in a third of it.
        keep_alive_s: Time that an idle connection stays open, seconds.
        question_s: Interval of the gateway's own health requests while no client sends requests, seconds.
        answer_s: Time limit of a health request, seconds. A failure is detected within `question_s` + `answer_s`.
        away_s: Maximum time that requests wait for Triton to respond again, seconds since it stopped responding.
        drain_s: Maximum time to wait for requests in progress at shutdown, seconds.
        access_log: If True, write one line of JSON per request to standard output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    triton: str = "127.0.0.1:8001"
    host: str = "127.0.0.1"
    port: Port = 8080
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 8081
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_in_flight: Count = 16
    max_waiting: Annotated[int, Field(ge=0)] = 64
    longest_wait_s: Seconds = 3.0
    max_connections: Count = 1000
    max_body_mib: Count = 32
    max_buffered_mib: Count = 512
    max_files: Count = 64
    deadline_s: Seconds = 30.0
    max_deadline_s: Seconds = 120.0
    receive_s: Seconds = 30.0
    keep_alive_s: Count = 15
    question_s: Seconds = 2.0
    answer_s: Seconds = 3.0
    away_s: Seconds = 15.0
    drain_s: Count = 30
    access_log: bool = False

    @model_validator(mode="after")
    def _parts_agree(self) -> GatewaySettings:
        if not _TARGET.fullmatch(self.triton):
            raise ValueError(f"triton: expected HOST:PORT or unix:PATH (gRPC, without http://), got {self.triton!r}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert, tls_key: expected both or neither, got only one. Give both.")
        if self.max_buffered_mib < COPIES * self.max_body_mib:
            raise ValueError(
                f"max_buffered_mib: expected at least {COPIES * self.max_body_mib}, {COPIES} times max_body_mib, got "
                f"{self.max_buffered_mib}. Give --max-buffered-mib."
            )
        if self.deadline_s > self.max_deadline_s:
            raise ValueError(
                f"deadline_s: expected at most max_deadline_s = {self.max_deadline_s:g}, got {self.deadline_s:g}. "
                "Give --deadline-s or --max-deadline-s."
            )
        return self

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of one request body, bytes."""
        return self.max_body_mib << 20


def settings_from_options(**options: object) -> GatewaySettings:
    """Return the settings for command-line options.

    Raises:
        SettingsError: an option is invalid; the message lists all errors.
    """
    from pydantic import ValidationError

    try:
        return GatewaySettings.model_validate(options)
    except ValidationError as error:
        faults = (
            " ".join([*(f"--{str(part).replace('_', '-')}" for part in fault["loc"]), fault["msg"]])
            for fault in error.errors(include_url=False)
        )
        raise SettingsError("; ".join(faults).replace("Value error, ", "")) from error


def open_listener(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises:
        ServerError: the port can't be listened on; the message names `option` as the one to change.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        # The socket's own message repeats the address; a failed name lookup has a negative errno.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServerError(
            f"{option}: expected a port that can be listened on, got {port} on {host}: {reason}. "
            f"Stop the program that uses it, or change {option}."
        ) from error


def is_loopback(one: socket.socket) -> bool:
    """Return True if only this machine can reach the listening socket."""
    return ipaddress.ip_address(one.getsockname()[0]).is_loopback
