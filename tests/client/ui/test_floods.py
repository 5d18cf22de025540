"""The page answers while others hold connections, send slowly, or send bodies in small pieces."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from plurum.client.ui.pictures import Decoding
from plurum.client.ui.uploads import Uploads
from tests.client.ui.browser import page_at

UPLOAD = b"POST /answers HTTP/1.1\r\nhost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    store = tmp_path_factory.mktemp("page") / "reviews"
    with page_at("--url", "127.0.0.1:9", "--store", store) as url:
        yield int(urlsplit(url).port or 0)


def send(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, float]:
    """The status of an answer, and how long it took."""
    start = time.monotonic()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body)
        return connection.getresponse().status, time.monotonic() - start


def png(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "pink").save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextlib.contextmanager
def held(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        ones = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(count)]
        for one in ones:
            with contextlib.suppress(OSError):
                one.sendall(sent)
        yield ones


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx", UPLOAD + b"content-length: 1000\r\n\r\nx"])
def test_idle_connections_do_not_block_others(port: int, sent: bytes) -> None:
    with held(port, 400, sent):
        for _ in range(3):
            status, took_s = send(port, "POST", "/answers", b"no image")
            assert status == 422
            assert took_s < 2


def test_chunked_bodies_are_refused_at_once(port: int) -> None:
    flood = UPLOAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000
    with held(port, 1, b"") as (one,):
        with contextlib.suppress(OSError):
            one.sendall(flood)
        status, took_s = send(port, "GET", "/")
        assert status == 200
        assert took_s < 2
    with held(port, 1, UPLOAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n") as (one,):
        assert one.recv(100).startswith(b"HTTP/1.1 411")


def test_uploads_of_disconnected_clients_cost_nothing(port: int) -> None:
    file = io.BytesIO()
    # Few bytes that take long to decode.
    Image.new("RGB", (7000, 7000), "red").save(file, "PNG")
    image = file.getvalue()
    head = UPLOAD + b"content-length: %d\r\n\r\n" % len(image)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one, contextlib.suppress(OSError):
            one.sendall(head + image)
            time.sleep(0.01)
            # A reset, not a goodbye.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    status, took_s = send(port, "POST", "/answers", b"no image")
    assert status == 422
    assert took_s < 2


@pytest.mark.parametrize("rest", [b"zz\r\n", b"0\r\n" + b"a: b\r\n" * 20_000, b"1\r\nx", b"\x00"])
def test_invalid_rest_of_a_body_leaves_no_traceback(port: int, rest: bytes) -> None:
    # The fixture holds the page to an empty standard error in the end.
    for head in (b"transfer-encoding: chunked\r\n\r\n", b"content-length: 3\r\n\r\nabcGET"):
        for _ in range(10):
            with held(port, 1, UPLOAD + head) as (one,), contextlib.suppress(OSError):
                one.sendall(rest)
                one.recv(100)
    assert send(port, "GET", "/")[0] == 200


class Body:
    """A request with a body of so many pieces of a MiB."""

    def __init__(self, mib: int) -> None:
        self.left = mib

    async def stream(self) -> AsyncIterator[bytes]:
        for _ in range(self.left):
            yield bytes(1 << 20)


def test_large_images_are_decoded_one_at_a_time() -> None:
    large, small = png(4000, 2001), png(8, 8)
    running: list[bytes] = []
    most = {large: 0, small: 0}

    def decode(data: bytes) -> None:
        running.append(data)
        most[data] = max(most[data], running.count(data))
        time.sleep(0.1)
        running.remove(data)

    async def run() -> None:
        decoding = Decoding(3)

        async def one(data: bytes) -> None:
            async with decoding.room(data):
                await asyncio.to_thread(decode, data)

        await asyncio.gather(*(one(data) for data in [large] * 4 + [small] * 9))

    asyncio.run(run())
    assert most == {large: 1, small: 3}


def test_memory_of_all_uploads_is_limited() -> None:
    async def run() -> None:
        uploads = Uploads(2)
        with pytest.raises(HTTPException, match="larger than 2 MiB"):
            async with uploads.body(Body(3)):  # type: ignore[arg-type]
                pass
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(8):
                whole = await stack.enter_async_context(uploads.body(Body(2)))  # type: ignore[arg-type]
                assert len(whole) == 2 << 20
            with pytest.raises(HTTPException, match="too many images"):
                async with uploads.body(Body(1)):  # type: ignore[arg-type]
                    pass
        async with uploads.body(Body(2)) as whole:  # type: ignore[arg-type]
            assert len(whole) == 2 << 20

    asyncio.run(run())
