"""Ports, and Triton's command line."""

from __future__ import annotations

import re
import socket

import pytest

from plurum.errors import ServerError, SettingsError
from plurum.serving import ServerSettings
from plurum.serving.triton.settings import Ports, claim_ports, is_exposed, server_arguments
from tests.serving.servers import FREE


def test_free_ports_differ() -> None:
    ports = claim_ports(FREE)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert min(ports.http, ports.grpc, ports.metrics) > 0


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_its_option(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"--{name}-port: .*got {port} on 127\.0\.0\.1: Address already in use"):
            claim_ports(FREE.model_copy(update={f"{name}_port": port}))


def test_the_same_port_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected different ports for HTTP, gRPC and metrics, got 9000, 9000"):
        claim_ports(ServerSettings(http_port=9000, grpc_port=9000, metrics_port=0))


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "::1"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ServerError, match=re.escape(host)):
        claim_ports(FREE.model_copy(update={"host": host}))
    with pytest.raises(ServerError, match=rf"--grpc-(host|port): .*{re.escape(host)}"):
        claim_ports(FREE.model_copy(update={"grpc_host": host}))


@pytest.mark.parametrize(
    ("host", "outside"),
    [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("203.0.113.7", True)],  # noqa: S104
)
def test_exposed_ports_give_warnings(host: str, outside: bool) -> None:
    assert is_exposed(host) is outside


def test_management_needs_a_header_that_no_client_can_send() -> None:
    arguments = server_arguments(FREE, Ports(1, 2, 3), "models", "name")
    locks = [argument.partition("=") for argument in arguments if "restricted" in argument]
    assert [option for option, _, _ in locks] == ["--http-restricted-api", "--grpc-restricted-protocol"]
    (lock,) = {lock for _, _, lock in locks}
    endpoints, _, header = lock.partition(":")
    assert set(endpoints.split(",")) == {"shared-memory", "model-repository", "trace", "logging"}
    assert "\n" in header.partition("=")[0]
