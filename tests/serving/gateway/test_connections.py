"""Connections of clients, with and without a gateway process."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
import uvicorn
from prometheus_client import generate_latest
from starlette.requests import ClientDisconnect
from tritonclient.grpc import service_pb2 as pb
from uvicorn.server import ServerState

from plurum.serving.gateway.connections.connection import GatewayConnection, connection_class
from plurum.serving.gateway.connections.middleware import GatewayMiddleware
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.triton import ENSEMBLE, TritonConnection
from plurum.settings.serving import GatewaySettings
from tests.serving.gateway.gateways import LIVE, lonely_gateway, run_scene
from tests.serving.waiting import wait_until

LONG = 60.0


def test_defect_gives_a_response_and_a_log_entry(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[dict[str, Any]] = []

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def scene() -> None:
        metrics = GatewayMetrics()
        scope = {"type": "http", "method": "GET", "path": "/v2", "headers": [], "client": ("127.0.0.1", 1)}
        await GatewayMiddleware(broken, None, metrics, None, access_log=False)(scope, receive, send)
        assert b'plurum_gateway_refused_total{reason="failed"} 1.0' in generate_latest(metrics.registry)

    run_scene(scene)
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]
    assert "ZeroDivisionError: secret" in caplog.text


def status_line(connection: socket.socket) -> str:
    connection.settimeout(10)
    return connection.recv(1 << 16).decode().split("\r\n")[0]


def test_excess_connection_is_refused_and_others_stay() -> None:
    with lonely_gateway(max_connections=2) as one, ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_connection(one.address)) for _ in range(2))
        first.sendall(LIVE)
        assert status_line(first) == "HTTP/1.1 200 OK"
        third = stack.enter_context(socket.create_connection(one.address))
        assert status_line(third) == "HTTP/1.1 503 Service Unavailable"
        assert third.recv(1) == b""
        second.sendall(LIVE)
        assert status_line(second) == "HTTP/1.1 200 OK"
        assert one.refused_connections("crowded") == 1


def test_memory_of_all_bodies_is_limited() -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n"
    with lonely_gateway(max_body_mib=1, max_buffered_mib=3) as one, ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_connection(one.address)) for _ in range(2))
        first.sendall(head + bytes(700_000))
        wait_until(lambda: one.count("buffered_bytes{}") >= 700_000)
        second.sendall(head + bytes(700_000))
        assert status_line(second) == "HTTP/1.1 503 Service Unavailable"
        first.close()
        wait_until(lambda: not one.count("buffered_bytes{}"))
        assert one.count('refused_total{reason="gone"}') == 1


def test_pipelined_requests_are_limited() -> None:
    with lonely_gateway() as one, socket.create_connection(one.address) as connection:
        connection.settimeout(10)
        connection.sendall(LIVE * 10)
        answers = b""
        while answers.count(b"200 OK") < 10:
            answers += connection.recv(1 << 16)
        with pytest.raises(ConnectionError):
            connection.sendall(LIVE * 200_000)
        assert one.refused_connections("malformed") == 1


class FakeTransport(asyncio.Transport):
    ends = 0
    written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.ends > 0

    def close(self) -> None:
        self.ends += 1

    abort = close


def connected(
    app: Any, transport: FakeTransport, behind: Any = None, **settings: Any
) -> tuple[GatewayConnection, GatewayMetrics]:
    """Return a connection to an application, and the metrics."""
    metrics = GatewayMetrics()
    middleware = GatewayMiddleware(app, None, metrics, behind, access_log=False)
    new_connection = connection_class(GatewaySettings(**settings), metrics, middleware)
    connection = new_connection(uvicorn.Config(middleware, log_config=None, lifespan="off"), ServerState(), {})
    connection.connection_made(transport)
    return connection, metrics


def test_clients_that_do_not_read_are_disconnected() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        await asyncio.sleep(LONG)

    async def scene() -> None:
        connection, metrics = connected(app, transport := FakeTransport(), receive_s=0.05)
        connection.data_received(LIVE)
        await asyncio.sleep(0.1)
        assert not transport.is_closing()
        connection.pause_writing()
        connection.resume_writing()
        await asyncio.sleep(0.1)
        assert not transport.is_closing()
        connection.pause_writing()
        await asyncio.sleep(0.1)
        assert transport.ends == 1
        assert b'connections_refused_total{reason="slow"} 1.0' in generate_latest(metrics.registry)
        # Like a transport; pending writes then end.
        connection.connection_lost(None)

    run_scene(scene)


class ClosedTransport(FakeTransport):
    def resume_reading(self) -> None:
        # As uvloop's.
        if self.ends:
            raise RuntimeError("unable to perform operation; the handler is closed")


def test_disconnecting_with_a_second_request_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        while (await receive())["type"] != "http.disconnect":
            pass
        left.append(scope["path"])
        raise ClientDisconnect

    left: list[str] = []

    async def scene() -> None:
        connection, metrics = connected(app, transport := ClosedTransport())
        connection.data_received(b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx" + LIVE)
        transport.abort()
        connection.connection_lost(None)
        await asyncio.sleep(0.01)
        assert b'refused_total{reason="gone"} 1.0' in generate_latest(metrics.registry)

    run_scene(scene)
    assert left == ["/first"]
    assert caplog.text == ""


class Full:
    """An application without free places."""

    full = True

    def check_head(self, scope: Any, headers: Any) -> None:  # noqa: ARG002 (a protocol's names)
        if scope["path"] == "/predict":
            raise RefusalError(503, "busy", "no place is free")


def test_refusal_by_the_head_precedes_the_body() -> None:
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        called.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scene() -> None:
        connection, metrics = connected(app, transport := FakeTransport(), behind := Full())
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 6\r\n"
        connection.data_received(head + b"\r\nabc")
        answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nx-plurum-refusal: busy\r\nretry-after: 1\r\nx-request-id: mine\r\n"
            b"content-type: application/json\r\ncontent-length: 29\r\n"
        )
        text = b'{"error": "no place is free"}'
        assert transport.written == answer + b"\r\n" + text
        # The rest of the body, and two more requests that did not wait.
        connection.data_received(b"def" + 2 * (head + b"\r\nabcdef"))
        assert transport.written == 3 * (answer + b"\r\n" + text)
        # Nothing is left for the garbage collector.
        gc.collect()
        gc.disable()
        connection.data_received(head + b"\r\nabcdef")
        garbage = gc.collect()
        gc.enable()
        assert garbage == 0
        await asyncio.sleep(0)
        assert not called
        assert b'requests_total{key="",route="other",status="503"} 4.0' in generate_latest(metrics.registry)
        assert b'refused_total{reason="busy"} 4.0' in generate_latest(metrics.registry)
        # A request that needs no place is passed on, and the next one is refused after its response.
        transport.written = b""
        connection.data_received(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n" + head + b"\r\nabcdef")
        assert not transport.written
        await asyncio.sleep(0.01)
        assert called == ["/v2"]
        assert transport.written.startswith(b"HTTP/1.1 200 OK")
        assert transport.written.endswith(answer + b"\r\n" + text)
        behind.full = False
        connection.data_received(head + b"\r\nabcdef")
        await asyncio.sleep(0.01)
        assert called == ["/v2", "/predict"]
        behind.full, transport.written = True, b""
        connection.data_received(head + b"connection: close\r\n\r\nabcdef")
        assert transport.written == answer + b"connection: close\r\n\r\n" + text
        assert transport.ends == 1
        connection.connection_lost(None)

    run_scene(scene)


def test_empty_lines_do_not_keep_a_connection_open() -> None:
    with lonely_gateway(receive_s=1.5) as one, socket.create_connection(one.address) as connection:
        connection.sendall(LIVE)
        assert status_line(connection) == "HTTP/1.1 200 OK"
        connection.sendall(b"\r\n")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began < 5


def test_loading_triton_serves_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ENSEMBLE

    async def metadata(request: Any, **_: Any) -> Any:
        if request.name == missing:
            raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata())
        return pb.ModelMetadataResponse(name=request.name)

    async def scene() -> None:
        nonlocal missing
        triton = TritonConnection("127.0.0.1:9")
        monkeypatch.setattr(TritonConnection, "connected", True)
        monkeypatch.setattr(triton, "_metadata", metadata)
        with pytest.raises(grpc.aio.AioRpcError):
            await triton._models()
        missing = "ensemble_fused"
        assert list(await triton._models()) == [ENSEMBLE, "ensemble_pixels"]
        await triton.close()

    run_scene(scene)
