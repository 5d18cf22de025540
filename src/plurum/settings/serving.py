"""Settings of a Triton server and of the gateway in front of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from plurum.settings.options import NOT_AN_OPTION, Option, Settings

__all__ = ["COPIES", "GatewaySettings", "ServerSettings", "ServerTls"]

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Copies of a body in memory on its way to Triton: as received, as a message, and in gRPC's buffers.
COPIES = 3
# HOST:PORT, or a Unix socket in gRPC's notation.
_TARGET = re.compile(r"unix:\S+|(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}")


class ServerTls(Settings):
    """TLS on Triton's gRPC port; all files are PEM.

    Attributes:
        cert: Certificate chain in PEM, the server's certificate first; enables TLS for gRPC.
        key: Private key of --grpc-tls-cert in PEM, without a password.
        client_ca: Certificate authorities of client certificates in PEM; enables mutual TLS. By default, every client
            is accepted.
    """

    cert: Annotated[Path, Option("--grpc-tls-cert")]
    key: Annotated[Path, Option("--grpc-tls-key")]
    client_ca: Annotated[Path | None, Option("--grpc-tls-client-ca")] = None


class ServerSettings(Settings):
    """Settings of a Triton server.

    Attributes:
        http_port: Port of HTTP; 0 takes a free one.
        grpc_port: Port of gRPC; 0 takes a free one.
        metrics_port: Port of /metrics; 0 takes a free one.
        host: Address to listen on, an IPv4 address or a host name.
        grpc_host: Address for gRPC only, such as 0.0.0.0. HTTP stays on --host, because one HTTP request can crash
            Triton 2.51. By default, that of --host.
        grpc_tls: Certificates for gRPC; None leaves gRPC unencrypted.
        start_timeout_s: Longest time until the server has completed its first inference, in seconds.
        exit_timeout_s: Longest time to wait for requests in flight at shutdown, in whole seconds.
    """

    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    host: str = "127.0.0.1"
    grpc_host: str | None = None
    grpc_tls: Annotated[ServerTls | None, NOT_AN_OPTION] = None
    start_timeout_s: Annotated[float, Field(gt=0), NOT_AN_OPTION] = 120.0
    exit_timeout_s: Annotated[int, Field(ge=1), NOT_AN_OPTION] = 5

    @property
    def grpc_address(self) -> str:
        """Address that gRPC listens on."""
        return self.host if self.grpc_host is None else self.grpc_host


class GatewaySettings(Settings):
    """Settings of a gateway.

    Attributes:
        triton: Triton's gRPC address: HOST:PORT or unix:PATH.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        metrics_host: Address to serve /metrics on. It needs no API key and shows clients' names, so the default is this
            machine only.
        metrics_port: Port of /metrics; 0 takes a free one.
        keys: File of API keys, one client per line: NAME:SHA256 or the key itself. By default, no key is needed.
        tls_cert: Certificate chain in PEM; enables HTTPS.
        tls_key: Private key of --tls-cert in PEM.
        max_in_flight: Largest number of requests sent to Triton at the same time.
        max_waiting: Largest number of waiting requests; further ones are refused immediately.
        longest_wait_s: Refuse requests whose expected response time exceeds this, in seconds. Bulk requests are exempt.
        max_connections: Largest number of open connections; further ones are closed immediately.
        max_body_mib: Largest request body in MiB.
        max_buffered_mib: Memory for the bodies of all requests with their copies, in MiB.
        max_files: Largest number of images in one request to /predict.
        deadline_s: Default deadline of a request, in seconds.
        max_deadline_s: Longest deadline that a request may set, in seconds.
        receive_s: Longest time for a request to arrive completely, in seconds; its head has a third of this time.
        keep_alive_s: Time that an idle connection stays open, in seconds.
        probe_interval_s: Interval of the gateway's own probes while no client sends requests, in seconds.
        probe_timeout_s: Time limit of a probe, in seconds. A failure is detected within `probe_interval_s` +
            `probe_timeout_s`.
        max_outage_s: Longest time that requests wait for Triton to respond again, in seconds since it stopped
            responding.
        drain_s: Longest time to wait for requests in progress at shutdown, in seconds.
        access_log: If True, write each request as a line of JSON to standard output.
    """

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
    longest_wait_s: Annotated[Seconds, NOT_AN_OPTION] = 3.0
    max_connections: Count = 1000
    max_body_mib: Count = 32
    max_buffered_mib: Count = 512
    max_files: Count = 64
    deadline_s: Seconds = 30.0
    max_deadline_s: Seconds = 120.0
    receive_s: Seconds = 30.0
    keep_alive_s: Annotated[Count, NOT_AN_OPTION] = 15
    probe_interval_s: Annotated[Seconds, NOT_AN_OPTION] = 2.0
    probe_timeout_s: Annotated[Seconds, NOT_AN_OPTION] = 3.0
    max_outage_s: Annotated[Seconds, NOT_AN_OPTION] = 15.0
    drain_s: Annotated[Count, NOT_AN_OPTION] = 30
    access_log: bool = False

    @model_validator(mode="after")
    def _parts_agree(self) -> GatewaySettings:
        if not _TARGET.fullmatch(self.triton):
            raise ValueError(f"--triton: expected HOST:PORT or unix:PATH (gRPC, without http://), got {self.triton!r}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert, --tls-key: expected both or neither, got only one. Give both.")
        if self.max_buffered_mib < COPIES * self.max_body_mib:
            raise ValueError(
                f"--max-buffered-mib: expected at least {COPIES * self.max_body_mib}, {COPIES} times --max-body-mib, "
                f"got {self.max_buffered_mib}. Raise it."
            )
        if self.deadline_s > self.max_deadline_s:
            raise ValueError(
                f"--deadline-s: expected at most {self.max_deadline_s:g}, the --max-deadline-s, got "
                f"{self.deadline_s:g}. Change one of them."
            )
        return self

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of one request body, bytes."""
        return self.max_body_mib << 20
