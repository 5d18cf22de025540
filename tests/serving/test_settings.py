"""Ports, and Triton's command line."""

from __future__ import annotations

import re
import socket

import pytest

from plurum.errors import ServerError, SettingsError
from plurum.serving import ServerSettings
from plurum.serving.settings import Ports, claimed_ports, server_arguments

FREE = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)


def test_free_ports_differ() -> None:
    ports = claimed_ports(FREE)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert min(ports.http, ports.grpc, ports.metrics) > 0


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_its_option(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} on 127\.0\.0\.1 .* in use; .* change --{name}-port"):
            claimed_ports(FREE.model_copy(update={f"{name}_port": port}))


def test_the_same_port_twice() -> None:
    with pytest.raises(SettingsError, match="need a port each, got 9000, 9000"):
        claimed_ports(ServerSettings(http_port=9000, grpc_port=9000, metrics_port=0))


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_a_host_that_is_not_ours(host: str) -> None:
    with pytest.raises(ServerError, match=re.escape(host)):
        claimed_ports(FREE.model_copy(update={"host": host}))


def test_management_is_shut_by_a_key_of_this_start() -> None:
    locks = [
        argument
        for _ in range(2)
        for argument in server_arguments(FREE, Ports(1, 2, 3), "models", "name")
        if "restricted" in argument
    ]
    assert len(locks) == 4
    assert len({lock.partition("admin-key=")[2] for lock in locks}) == 2
    opened = server_arguments(FREE.model_copy(update={"open_management": True}), Ports(1, 2, 3), "models", "name")
    assert not [argument for argument in opened if "restricted" in argument]
