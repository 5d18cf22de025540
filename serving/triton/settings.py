"""Translation of a server's settings into Triton's command line, and a release on trial."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from plurum.errors import ServerError, SettingsError, port_error
from plurum.settings.serving import ServerSettings, ServerTls
from plurum.spec import Metadata

__all__ = ["Ports", "ReleaseTrial", "claim_ports", "find_exposures", "is_exposed", "server_arguments"]

# Endpoints that no client needs: loading a model runs code, and several vulnerabilities of this version of Triton lie
# behind them. Triton requires this header, whose name no client can send: a line break ends a header in HTTP/1, and
# gRPC closes a connection that sends one. The name is not a secret, so it may appear in Triton's arguments.
_MANAGEMENT = ("shared-memory", "model-repository", "trace", "logging")
_UNSENDABLE = "No client\ncan send this"


@dataclass(frozen=True)
class Ports:
    """The ports that a server listens on."""

    http: int
    grpc: int
    metrics: int


class ReleaseTrial(Metadata):
    """A release that handles some requests in place of the public one, or is compared with it.

    Attributes:
        release: The release's tag.
        percent: The percentage of requests that it handles, 0 to 100.
        shadow: If True, its responses are only compared with the public release's.
    """

    release: str
    percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    shadow: bool = False


def claim_ports(settings: ServerSettings) -> Ports:
    """Return the ports of `settings`, with free ports in place of zeros.

    Raises:
        ServerError: a port is in use, or can't be listened on.
        SettingsError: two ports are the same.
    """
    requested = {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
    stated = [port for port in requested.values() if port]
    if len(set(stated)) < len(stated):
        raise SettingsError(
            f"ports: expected different ports for HTTP, gRPC and metrics, got {', '.join(map(str, stated))}. "
            "Change one of them."
        )
    held: dict[str, socket.socket] = {}
    try:
        # Claim stated ports first and hold all of them, so that no port is assigned twice.
        for name in sorted(requested, key=lambda name: requested[name] == 0):
            is_separate = name == "grpc" and settings.grpc_host is not None
            host, option = (settings.grpc_address, "--grpc-host") if is_separate else (settings.host, "--host")
            held[name] = _listener(host, requested[name], option, f"--{name}-port")
        return Ports(**{name: one.getsockname()[1] for name, one in held.items()})
    finally:
        for one in held.values():
            one.close()


def is_exposed(host: str) -> bool:
    """Return True if other machines can reach a server that listens on `host`, an address whose port was claimed."""
    return not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback


def find_exposures(settings: ServerSettings, *, from_wheel: bool) -> list[str]:
    """Return a warning for each way in which the network can misuse the server; its ports have been claimed before.

    Args:
        settings: Settings of the server.
        from_wheel: True if Triton comes from the `nvidia-pytriton` wheel.
    """
    warnings = []
    if from_wheel and is_exposed(settings.host):
        warnings.append(
            f"a single HTTP request can crash this version of Triton: put a gateway in front of {settings.host}, "
            "or serve from NVIDIA's container"
        )
    if not is_exposed(settings.grpc_address):
        return warnings
    if settings.grpc_tls is None:
        warnings.append(
            f"gRPC on {settings.grpc_address} is unencrypted and open to every client that reaches it: give "
            "--grpc-tls-cert, --grpc-tls-key and --grpc-tls-client-ca"
        )
    elif settings.grpc_tls.client_ca is None:
        warnings.append(
            f"gRPC on {settings.grpc_address} is open to every client that reaches it: --grpc-tls-client-ca admits "
            "only clients with a certificate"
        )
    return warnings


def server_arguments(settings: ServerSettings, ports: Ports, repository: str, name: str) -> list[str]:
    """Return Triton's command line without the binary.

    Args:
        settings: Settings of the server.
        ports: Claimed ports, none of them 0.
        repository: Folder with the models.
        name: Prefix of this server's shared memory; it also identifies the server's processes.
    """
    lock = f"{','.join(_MANAGEMENT)}:{_UNSENDABLE}=1"
    arguments = [
        f"--model-repository={repository}",
        # Load all models at the start; `drain` unloads the ensembles before the end.
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=true",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={name}",
        # Triton's defaults are 0.0.0.0.
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
    # Absolute paths: Triton runs in another working directory.
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
        raise ServerError(
            f"{host_option}: expected an IPv4 address or a host name, got {host!r} ({error.strerror}). "
            "Give another address."
        ) from error
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Like Triton itself, allow a port on which an earlier server's connections are still closing.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
        one.listen()
    except OSError as error:
        one.close()
        raise port_error(port_option, port, host, error) from error
    return one
