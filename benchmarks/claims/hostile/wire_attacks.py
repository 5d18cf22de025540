"""Attacks on the syntax and the flow of HTTP/1, which need no knowledge of the service."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

from plurum.benchmarks.claims.hostile.attack import ANY, EITHER, REFUSED, Attacker, Kind, Make
from plurum.benchmarks.claims.hostile.wires import CLOSED, TIMEOUT, Wire
from plurum.benchmarks.tools.wire import http_request

__all__ = ["WIRE"]

_MIB = 1 << 20
_CHUNKED = "transfer-encoding: chunked"
_SYNTAX = (
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\nhost: x\n\n",
    b"GET / HTTP/1.1\rhost: x\r\r",
    b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nh\x00st: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\x00y\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
    b"G\xc3\x84T / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET  /  HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / http/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"\r\n" * 500 + b"GET / HTTP/1.1\r\n\r\n",
)
_SMUGGLED = (
    "content-length: 5\r\ncontent-length: 6",
    "content-length: 5, 5",
    "content-length: +5",
    "content-length: 0x5",
    "content-length: 5\r\ntransfer-encoding: chunked",
    "transfer-encoding: chunked\r\ncontent-length: 5",
    "transfer-encoding: xchunked",
    "transfer-encoding: chunked, identity",
    "transfer-encoding: identity, chunked",
    "transfer-encoding:\tchunked\r\ncontent-length: 4",
    "transfer-encoding : chunked",
    "transfer-encoding: chunked\r\ntransfer-encoding: x",
    " transfer-encoding: chunked",
    "content-length: 5\r\nx: y\r\n content-length: 50",
)
_SIZES = ("zz", "-1", "+1", "0x10", "10" * 40, "ffffffffffffffff", "", "1 1", "\x00")
_LENGTHS = ("-1", "1" * 19, "9" * 40, "1e9", "", " ", "٣", "4294967296", str(1 << 63))
_TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 50
_TRAILER = b"x-trailer: " + b"y" * 4000 + b"\r\n"
_METHODS = ("TRACE", "CONNECT", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "get", "X" * 300, "PRI", "GETPOST")


# Makes bytes from random numbers.
Draw = Callable[[random.Random], bytes]


def _alone(*choices: bytes) -> Make:
    return lambda attacker: [attacker.alone(attacker.choose(*choices), 2.0)]


def _drawn(draw: Draw) -> Make:
    return lambda attacker: [attacker.alone(draw(attacker.chance), 2.0)]


def _connected(use: Callable[[Attacker, Wire], list[int]], timeout_s: float = 5.0) -> Make:
    """Use a connection; one that breaks counts as closed."""

    def make(attacker: Attacker) -> list[int]:
        with contextlib.suppress(OSError), Wire(attacker.place, timeout_s) as wire:
            return use(attacker, wire)
        return [CLOSED]

    return make


def _endless(begin: bytes, piece: bytes, most: int, *, chunked: bool = False) -> Make:
    """Send pieces until the server closes the connection, or `most` bytes; `chunked` sends them as an upload."""

    def use(attacker: Attacker, wire: Wire) -> list[int]:
        wire.send(attacker.head(_CHUNKED) + begin if chunked else begin)
        for _ in range(most // len(piece)):
            if not wire.send(piece):
                break
        return [wire.status()]

    return _connected(use, 10.0)


def _many_headers(attacker: Attacker) -> list[int]:
    lines = b"".join(b"a%d: b\r\n" % number for number in range(attacker.chance.randint(1000, 9000)))
    return [attacker.alone(b"GET / HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")]


def _bad_chunk(attacker: Attacker) -> list[int]:
    size = attacker.choose(*_SIZES).encode()
    return [attacker.alone(attacker.head(_CHUNKED) + size + b"\r\n" + b"1" * 50 + b"\r\n0\r\n\r\n", 2.0)]


def _smuggling(attacker: Attacker) -> list[int]:
    lines = attacker.choose(*_SMUGGLED)
    inner = http_request("POST", "/v2/repository/models/smuggled/load", b"{}")
    return [attacker.alone(attacker.head(lines) + b"0\r\n\r\n" + inner, 2.0)]


def _lengths(attacker: Attacker) -> list[int]:
    return [attacker.alone(attacker.head(f"content-length: {attacker.choose(*_LENGTHS)}") + bytes(99), 2.0)]


def _pipelined(_: Attacker, wire: Wire) -> list[int]:
    wire.send(http_request("GET", "/v2/health/live") * 200)
    outcomes: list[int] = []
    while wire.is_open and len(outcomes) < 200:
        outcomes.append(wire.status())
    return outcomes


def _hold(attacker: Attacker, begin: bytes, drop: bytes, count: int = 100) -> Iterator[int]:
    """Hold connections, each fed `drop` twice a second; give the outcome of each."""
    wires = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            wires.append(Wire(attacker.place, 5.0))
    for wire in wires:
        wire.send(begin)
    end = time.monotonic() + attacker.known.hold_s
    while drop and time.monotonic() < end and any(wire.is_open for wire in wires):
        for wire in wires:
            wire.send(drop)
        time.sleep(0.5)
    end = max(end, time.monotonic() + 0.5)
    for wire in wires:
        yield wire.wait_closed(max(end - time.monotonic(), 0.01))
        wire.close()
    yield from [CLOSED] * (count - len(wires))


def _half_closed(attacker: Attacker, wire: Wire) -> list[int]:
    wire.send(attacker.head("content-length: 1000") + b"half")
    wire.half_close()
    return [wire.status()]


def _leave(attacker: Attacker, wire: Wire) -> list[int]:
    """Leave in the middle of a body, with or without a reset."""
    wire.send(attacker.head("content-length: 100000") + bytes(attacker.chance.randrange(90_000)))
    if attacker.chance.random() < 0.5:
        wire.reset()
    return [CLOSED]


def _reset_before_response(attacker: Attacker, wire: Wire) -> list[int]:
    image = attacker.image()
    wire.send(attacker.head(f"content-length: {len(image)}") + image)
    time.sleep(attacker.chance.random() / 100)
    wire.reset()
    return [CLOSED]


def _never_read(attacker: Attacker) -> Iterator[int]:
    """Request large responses over connections, and read none of them."""
    wires = []
    for _ in range(20):
        with contextlib.suppress(OSError):
            wire = Wire(attacker.place, 0.3, receive_bytes=2048)
            wire.send(http_request("GET", "/v2/models/ensemble/config") * 400)
            wires.append(wire)
    time.sleep(2)
    for wire in wires:
        wire.reset()
        yield CLOSED
    yield from [CLOSED] * (20 - len(wires))


def _expect(attacker: Attacker, wire: Wire) -> list[int]:
    value = attacker.choose("100-continue", "200-ok", "100-continue, x", "\x7f")
    wire.send(attacker.head("content-length: 5", f"expect: {value}"))
    outcome = wire.status()
    # 100 was skipped, and the body is missing.
    return [CLOSED if outcome == TIMEOUT else outcome]


def _upgrade(attacker: Attacker) -> list[int]:
    protocol = attacker.choose("websocket", "h2c", "TLS/1.0", "x")
    key = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n"
    sent = f"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n{key}\r\n"
    return [attacker.alone(sent.encode(), 2.0)]


def _method(attacker: Attacker) -> list[int]:
    method = attacker.choose(*_METHODS)
    path = attacker.choose(attacker.path, "/", "*", "http://127.0.0.1/", "127.0.0.1:80", "//x")
    return [attacker.alone(http_request(method, path, b"x"), 2.0)]


_SOON_CLOSED = REFUSED | {"timeout"}

WIRE: dict[str, Kind] = {
    "broken syntax": Kind(_alone(*_SYNTAX), may=EITHER | {"timeout"}),
    "random bytes": Kind(
        _drawn(lambda chance: chance.randbytes(chance.randint(1, 3000)) + b"\r\n\r\n"), may=_SOON_CLOSED
    ),
    "TLS hello": Kind(_drawn(lambda chance: _TLS_HELLO + chance.randbytes(508)), may=_SOON_CLOSED),
    "HTTP/2 preface": Kind(_alone(_HTTP2), may=_SOON_CLOSED),
    "endless head": Kind(_endless(b"GET / HTTP/1.1\r\n", b"x-1: " + b"y" * 4000 + b"\r\n", 4 * _MIB), cost=4),
    "one endless header": Kind(_endless(b"GET / HTTP/1.1\r\nx: ", b"y" * 8192, 4 * _MIB), cost=4),
    "endless path": Kind(_endless(b"GET /", b"a/../" * 1000, 4 * _MIB), cost=4),
    "many headers": Kind(_many_headers, cost=4),
    "endless trailers": Kind(_endless(b"1\r\nx\r\n0\r\n", _TRAILER, 64 * _MIB, chunked=True), cost=40),
    "chunk extensions": Kind(_endless(b"", b"1;" + b"e=" * 4000 + b"\r\nx\r\n", 16 * _MIB, chunked=True), cost=40),
    "one endless chunk extension": Kind(_endless(b"1;", b"e" * 8192, 16 * _MIB, chunked=True), cost=40),
    "chunks of one byte": Kind(_endless(b"", b"1\r\nx\r\n" * 1000, 6_000_000, chunked=True), cost=20, deadly=True),
    "endless body": Kind(_endless(b"", b"10000\r\n" + bytes(1 << 16) + b"\r\n", 80 * _MIB, chunked=True), cost=40),
    "chunks of odd sizes": Kind(_bad_chunk, may=_SOON_CLOSED),
    "request smuggling": Kind(_smuggling, may=EITHER | {"timeout"}),
    "odd content lengths": Kind(_lengths, may=_SOON_CLOSED),
    "200 pipelined requests": Kind(_connected(_pipelined, 10.0), may=EITHER),
    "slow heads": Kind(lambda attacker: _hold(attacker, b"GET / HTTP/1.1\r\n", b"x"), cost=10, may=ANY - {"500"}),
    "slow bodies": Kind(
        lambda attacker: _hold(attacker, attacker.head("content-length: 1000"), b"x"), cost=10, may=ANY - {"500"}
    ),
    "idle connections": Kind(lambda attacker: _hold(attacker, b"", b""), cost=10, may=ANY - {"500"}),
    "half-closed connections": Kind(_connected(_half_closed), may=_SOON_CLOSED),
    "connections left in a body": Kind(_connected(_leave)),
    "connections reset before the response": Kind(_connected(_reset_before_response)),
    "responses that nobody reads": Kind(_never_read, cost=10),
    "refused bodies of 31 MiB": Kind(
        lambda attacker: [attacker.send("POST", attacker.path, bytes(31 * _MIB), content_type="application/zip")],
        cost=10,
    ),
    "expectations": Kind(_connected(_expect, 1.0)),
    "upgrades": Kind(_upgrade, may=EITHER),
    "odd methods": Kind(_method, may=_SOON_CLOSED | {"2xx", "3xx"}),
}
