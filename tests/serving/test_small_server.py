"""Health and metrics answer everybody, whoever else holds connections or breaks them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, MetricsHandler

from plurum.serving.small_server import SmallHttpServer
from plurum.serving.status import Status, StatusServer


@pytest.fixture(params=["status", "metrics"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "status":
        with StatusServer(Status(), "127.0.0.1", 0) as said:
            yield int(said.url.rpartition(":")[2])
        return
    server = SmallHttpServer("127.0.0.1", 0, MetricsHandler.factory(CollectorRegistry()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def ask(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3) as answer:
        return int(answer.status)


def test_idle_connections_block_no_other_client_and_no_thread(port: int) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
        for one in held:
            with contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.1\r\nx: ")
        start = time.monotonic()
        assert ask(port) == 200
        assert time.monotonic() - start < 1
        assert threading.active_count() - before <= 80


def test_a_slow_sender_is_disconnected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plurum.serving.small_server._LONGEST_S", 1.0)
    with socket.create_connection(("127.0.0.1", port), timeout=8) as slow:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 6:
                slow.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - start < 4


def test_broken_connections_are_not_logged(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert ask(port) == 200
    time.sleep(0.2)
    assert capfd.readouterr().err == ""
