"""What a gateway may be asked for."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plurum.errors import ServerError, SettingsError

__all__ = ["COPIES", "GatewaySettings", "checked", "is_loopback", "listener"]

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# On its way to Triton a body is in memory so many times: as it came, as a message, and in gRPC's buffers.
COPIES = 3
# HOST:PORT, or a Unix socket as gRPC names it.
_TARGET = re.compile(r"unix:\S+|(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}")


class GatewaySettings(BaseModel):
    """Options of `plurum gateway`.

    Attributes:
        triton: Where Triton answers over gRPC: HOST:PORT or unix:PATH.
        host: Address to listen on.
        port: 0 takes a free one.
        metrics_host: Address of /metrics. It has a port of its own, on this machine alone unless told otherwise: it
            names who asks how often, and Prometheus has no key.
        metrics_port: 0 takes a free one.
        keys: File with the keys of those who may ask; None lets everyone ask.
        tls_cert: Certificate chain, PEM; None speaks plain HTTP.
        tls_key: Its private key, PEM.
        max_in_flight: Requests that Triton is given at once.
        max_waiting: Requests that wait for a place among those; more are refused at once.
        longest_wait_s: Nor does a request wait that is expected to be answered later than this, unless it is bulk: who
            asks after a rush would wait for all of it.
        max_connections: Open connections; more are closed at once.
        max_body_mib: Of one request.
        max_buffered_mib: Memory for the bodies of all requests together, each with its copies.
        max_files: Images in one request to /predict.
        deadline_s: How long a request may take that does not say so itself.
        max_deadline_s: The most that a request may ask for.
        receive_s: How long a request may take to arrive; its head a third of that.
        keep_alive_s: How long an idle connection stays open.
        question_s: How often Triton is asked a question of ours while nobody else asks.
        answer_s: How long it may take to answer that; with `question_s`, when it is noticed that it does not answer.
        away_s: Requests wait for a Triton that has gone away, at most so long after it went.
        drain_s: How long requests in flight are waited for at the end.
        access_log: Whether each request is a line of JSON on standard output.
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
            raise ValueError(f"triton is {self.triton!r}, and HOST:PORT or unix:PATH is needed (gRPC, no http://)")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a certificate and its private key belong together; give both")
        if self.max_buffered_mib < COPIES * self.max_body_mib:
            raise ValueError(
                f"max_buffered_mib: expected at least {COPIES * self.max_body_mib}, {COPIES} times max_body_mib, got "
                f"{self.max_buffered_mib}. Give --max-buffered-mib."
            )
        if self.deadline_s > self.max_deadline_s:
            raise ValueError(f"a deadline of {self.deadline_s:g} s is beyond the longest of {self.max_deadline_s:g} s")
        return self

    @property
    def max_body_bytes(self) -> int:
        """Of one request."""
        return self.max_body_mib << 20


def checked(**options: object) -> GatewaySettings:
    """Return the settings of these options.

    Raises:
        SettingsError: all that is wrong with them.
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


def listener(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises:
        ServerError: it can't be listened on; `option` is what would change that.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        # The socket's own words repeat the address; a name that is none has a negative number.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServerError(
            f"port {port} on {host} can't be listened on: {reason}; end what uses it or change {option}"
        ) from error


def is_loopback(one: socket.socket) -> bool:
    """Whether only this machine can reach what listens there."""
    return ipaddress.ip_address(one.getsockname()[0]).is_loopback
