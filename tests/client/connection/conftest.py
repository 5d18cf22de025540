"""Fixtures for tests of the clients against a real server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client.connection.addresses import WireProtocol
from plurum.run import Run
from plurum.serving import Server
from tests.client.relay import Relay


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> WireProtocol:
    chosen: WireProtocol = request.param
    return chosen


@pytest.fixture
def url(protocol: WireProtocol, served: Server) -> str:
    return str(getattr(served.urls, protocol))


@pytest.fixture(scope="package")
def pixels(run: Run) -> npt.NDArray[np.uint8]:
    return np.array(run.pixels()[:40])


@pytest.fixture
def new_relay(url: str) -> Callable[[], Relay]:
    """Function that returns a new relay to the server."""
    return lambda: Relay(url.removeprefix("http://"))


@pytest.fixture
def relay(new_relay: Callable[[], Relay]) -> Iterator[Relay]:
    with new_relay() as relay:
        yield relay


@pytest.fixture
def closed_port() -> str:
    """Address on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"
