"""What a server may be asked for, and what that means on Triton's command line."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from plurum.errors import ServerError, SettingsError
from plurum.serving.triton.certificates import ServerTls

__all__ = ["Ports", "ServerSettings", "claimed_ports", "exposures", "faces_a_network", "server_arguments"]

Port = Annotated[int, Field(ge=0, le=65535)]
# Endpoints that no client needs: loading a model runs code, and several holes of this version of Triton lie behind
# them. A request passes if it has this header, whose name no client can send: a line break ends a header in HTTP/1, and
# gRPC closes a connection on which such a name is sent. It is no secret, so it may stand in Triton's arguments.
_MANAGEMENT = ("shared-memory", "model-repository", "trace", "logging")
_UNSENDABLE = "No client\ncan send this"


class ServerSettings(BaseModel):
    """Options of `plurum serve`.

    Attributes:
        host: Address to listen on, IPv4 or a name.
        grpc_host: Another one for gRPC, which can face a network while HTTP, of which one request can end Triton 2.51,
            stays on this machine; None takes `host`.
        http_port: 0 takes a free one, likewise below.
        grpc_port: Likewise.
        metrics_port: Likewise.
        grpc_tls: Certificates for gRPC; None leaves it unencrypted.
        start_timeout_s: How long the server may take until it answers, seconds.
        exit_timeout_s: How long requests in flight are waited for at the end, whole seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    grpc_host: str | None = None
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    grpc_tls: ServerTls | None = None
    start_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    exit_timeout_s: Annotated[int, Field(ge=1)] = 5

    @property
    def grpc_address(self) -> str:
        """Where gRPC listens."""
        return self.host if self.grpc_host is None else self.grpc_host


@dataclass(frozen=True)
class Ports:
    """The ports that a server listens on."""

    http: int
    grpc: int
    metrics: int


def claimed_ports(settings: ServerSettings) -> Ports:
    """Return the ports that `settings` mean, with free ones in place of zeros.

    Raises:
        ServerError: a port is taken, or can't be listened on.
        SettingsError: two of them are the same.
    """
    wanted = {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
    stated = [port for port in wanted.values() if port]
    if len(set(stated)) < len(stated):
        raise SettingsError(f"HTTP, gRPC and metrics need a port each, got {', '.join(map(str, stated))}")
    held: dict[str, socket.socket] = {}
    try:
        # Stated ones first, and all held at once, so that none of the free ones is taken twice.
        for name in sorted(wanted, key=lambda name: wanted[name] == 0):
            apart = name == "grpc" and settings.grpc_host is not None
            host, option = (settings.grpc_address, "--grpc-host") if apart else (settings.host, "--host")
            held[name] = _listener(host, wanted[name], option, f"--{name}-port")
        return Ports(**{name: one.getsockname()[1] for name, one in held.items()})
    finally:
        for one in held.values():
            one.close()


def faces_a_network(host: str) -> bool:
    """Whether others than this machine can reach what listens on `host`; a port there has been claimed before."""
    return not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback


def exposures(settings: ServerSettings, *, from_wheel: bool) -> list[str]:
    """Return what strangers can do where they can reach the server, in words; its ports have been claimed before.

    Args:
        settings: As asked for.
        from_wheel: Whether Triton is the one inside the wheel.
    """
    said = []
    if from_wheel and faces_a_network(settings.host):
        said.append(
            f"a single HTTP request can end this version of Triton: on {settings.host} put a gateway before it, "
            "or serve from NVIDIA's container"
        )
    if not faces_a_network(settings.grpc_address):
        return said
    if settings.grpc_tls is None:
        said.append(
            f"gRPC on {settings.grpc_address} is unencrypted, and whoever reaches it may ask: give --grpc-tls-cert, "
            "--grpc-tls-key and --grpc-tls-client-ca"
        )
    elif settings.grpc_tls.client_ca is None:
        said.append(
            f"whoever reaches gRPC on {settings.grpc_address} may ask: --grpc-tls-client-ca lets in those with a "
            "certificate alone"
        )
    return said


def server_arguments(settings: ServerSettings, ports: Ports, repository: str, name: str) -> list[str]:
    """Return Triton's command line without the binary.

    Args:
        settings: As asked for.
        ports: None of them 0.
        repository: The folder with the models.
        name: Begins the names of this server's shared memory, and tells its processes from others'.
    """
    lock = f"{','.join(_MANAGEMENT)}:{_UNSENDABLE}=1"
    arguments = [
        f"--model-repository={repository}",
        # All are loaded at the start; ensembles are unloaded before the end.
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=true",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={name}",
        # Triton's own addresses are 0.0.0.0.
        f"--http-address={settings.host}",
        f"--grpc-address={settings.grpc_address}",
        f"--metrics-address={settings.host}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        f"--http-restricted-api={lock}",
        f"--grpc-restricted-protocol={lock}",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.95:0.01,0.99:0.001",
    ]
    if settings.grpc_tls is not None:
        arguments += _tls_arguments(settings.grpc_tls)
    return arguments


def _tls_arguments(tls: ServerTls) -> list[str]:
    # Triton has another working directory.
    arguments = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={tls.cert.absolute()}",
        f"--grpc-server-key={tls.key.absolute()}",
    ]
    if tls.client_ca is not None:
        arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={tls.client_ca.absolute()}"]
    return arguments


def _listener(host: str, port: int, host_option: str, port_option: str) -> socket.socket:
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise ServerError(f"{host!r} is no IPv4 address or name: {error.strerror}; change {host_option}") from error
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As servers do: connections of an earlier one that are still closing don't count.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
        one.listen()
    except OSError as error:
        one.close()
        raise ServerError(
            f"port {port} on {host} can't be listened on: {error.strerror}; end what uses it or change {port_option}"
        ) from error
    return one
