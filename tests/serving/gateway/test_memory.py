"""Resident memory of a gateway's process, whatever clients send."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.gateway.gateways import Gateway, lonely_gateway, response_from
from tests.serving.waiting import wait_until

KEY = "correct-horse-battery-staple"
MIB = 1 << 20
CHUNKED = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n"
# Nothing that arrives before a request is accepted may take more than this on one connection.
BEFORE_MIB = 4


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"clinic:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module", params=["http", "https"])
def guarded(request: pytest.FixtureRequest, keys: Path, tls: dict[str, Any]) -> Iterator[Gateway]:
    """A gateway that requires a key, with each protocol."""
    with lonely_gateway(keys=str(keys), receive_s=5, **(tls if request.param == "https" else {})) as one:
        # Create everything that is created on first use.
        assert one.exchange(GET + b"\r\n").startswith(b"HTTP/1.1 200")
        yield one


def endless(first: bytes, piece: bytes) -> Iterator[bytes]:
    """Begin, and go on for 64 MiB."""
    yield first
    big = piece * (MIB // len(piece))
    yield from itertools.repeat(big, 64)


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a line": (b"GET /", b"a"),
    "a field's name": (GET, b"x"),
    "a field's value": (GET + b"x: ", b"y"),
    "fields": (GET, b"x: y\r\n"),
    "tiny fields": (GET, b"a:\r\n"),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"),
    "tiny trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"a:\r\n"),
    "one trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nx: ", b"y"),
    "a trailer's name": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"y"),
    "an extension": (CHUNKED + b"5;x=", b"y"),
    "a chunk's size": (CHUNKED, b"0"),
    "chunks of a byte": (CHUNKED, b"1\r\nx\r\n"),
    "chunks with extensions": (CHUNKED, b"1;" + b"x" * 1000 + b"\r\nx\r\n"),
    "requests": (b"", GET + b"\r\n"),
    "requests with bodies": (b"", b"POST /predict HTTP/1.1\r\ncontent-length: 900\r\n\r\n" + bytes(900)),
    "empty lines": (b"", b"\r\n"),
    "a body without a key": (b"POST /predict HTTP/1.1\r\ncontent-length: 900000000\r\n\r\n", bytes(1000)),
    "a body that is not read": (b"GET /v2 HTTP/1.1\r\ncontent-length: 900000000\r\n\r\n", bytes(1000)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_requests_take_no_memory(guarded: Gateway, kind: str) -> None:
    before = guarded.resident_mib("HWM")
    began = time.monotonic()
    guarded.exchange(*endless(*ENDLESS[kind]))
    assert guarded.resident_mib("HWM") - before < BEFORE_MIB
    assert time.monotonic() - began < 15
    assert guarded.exchange(GET + b"\r\n").startswith(b"HTTP/1.1 200")


def test_ordinary_heads_and_trailers_pass(guarded: Gateway) -> None:
    fields = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 200) for number in range(100))
    assert guarded.exchange(GET + fields + b"\r\n").startswith(b"HTTP/1.1 200")
    chunked = CHUNKED.replace(b"POST /predict", b"GET /v2/health/live")
    assert guarded.exchange(chunked + b"5;a=b\r\nhello\r\n0\r\nx-checksum: 12\r\n\r\n").startswith(b"HTTP/1.1 200")
    many = b"".join(b"x-%d: y\r\n" % number for number in range(200))
    assert guarded.exchange(GET + many + b"\r\n").startswith(b"HTTP/1.1 431")


def test_response_is_never_taken_for_that_of_an_earlier_request() -> None:
    with lonely_gateway(deadline_s=3) as one, contextlib.closing(one.connection()) as connection:
        # The first waits for Triton; behind it comes more than is kept.
        connection.sendall(b"GET /v2/models/ensemble HTTP/1.1\r\nhost: x\r\n\r\n" + (GET + b"\r\n") * 40)
        assert response_from(connection) == b""


def head(path: str, size: int, *lines: str, key: str = KEY, method: str = "POST") -> bytes:
    fields = [f"{method} {path} HTTP/1.1", "host: x", f"x-api-key: {key}", f"content-length: {size}", *lines, "\r\n"]
    return "\r\n".join(fields).encode()


def inference(tensor_bytes: int, json_bytes: int) -> bytes:
    """Return JSON of a given length that announces an image."""
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": tensor_bytes}}
    return json.dumps({"inputs": [tensor]}).encode().ljust(json_bytes)


INFER, BODY, SIZE = "/v2/models/ensemble/infer", bytes(31 * MIB), 31 * MIB
FORM = "content-type: multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
JSON_SIZE, SOON = "inference-header-content-length", "x-deadline-ms: 50"
# Status, and the start of a request whose body is filled with zeros.
REFUSED: dict[str, tuple[int, bytes]] = {
    "no key": (401, head("/predict", SIZE, key="x" * 20)),
    "unknown path": (404, head("/predicted", SIZE)),
    "unknown method": (405, head("/predict", SIZE, method="PUT")),
    "too large": (413, head("/predict", 40 * MIB)),
    "too large without a length": (
        413,
        CHUNKED[:-2] + f"x-api-key: {KEY}\r\n\r\n".encode() + b"%x\r\n%b\r\n%x\r\n" % (SIZE, BODY, SIZE),
    ),
    "too much JSON": (413, head(INFER, SIZE)),
    "malformed JSON": (400, head(INFER, SIZE, f"{JSON_SIZE}: 100")),
    "another size": (400, head(INFER, SIZE, f"{JSON_SIZE}: 4096") + inference(SIZE - 4096, 4096)),
    "malformed form": (400, head("/predict", SIZE, FORM)),
    "truncated form": (400, head("/predict", SIZE, FORM) + FILE),
    "encoded": (415, head("/predict", SIZE, "content-encoding: gzip")),
    "a deadline of words": (400, head("/predict", SIZE, "x-deadline-ms: soon")),
    "no Triton": (503, head("/predict", SIZE, SOON)),
    "no Triton for a tensor": (
        503,
        head(INFER, SIZE, f"{JSON_SIZE}: 200", SOON) + inference(SIZE - 200, 200) + struct.pack("<I", SIZE - 204),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_bodies_are_freed(keys: Path, kind: str) -> None:
    status, start = REFUSED[kind]
    # The request is complete, whatever part of its body `start` holds.
    request = start + BODY[len(start.partition(b"\r\n\r\n")[2]) % SIZE :]
    with lonely_gateway(keys=str(keys)) as one:
        one.exchange(GET + b"\r\n")
        base = one.resident_mib()
        for _ in range(16):
            answer = one.exchange(request)
            # Where it closed while more was coming, the answer may be lost on its way.
            assert answer.startswith(b"HTTP/1.1 %d" % status) or answer == b""
        # One at a time: a body with its copies, and what a piece of it takes on the way.
        assert one.resident_mib("HWM") - base < 3 * 31 + 40
        assert one.resident_mib() - base < 40
        assert one.count("buffered_bytes{}") == 0


@pytest.mark.slow
def test_many_large_bodies_stay_within_the_limit(keys: Path) -> None:
    begin = head("/predict", 31 * MIB, "x-deadline-ms: 3000")
    with lonely_gateway(keys=str(keys)) as one, ThreadPoolExecutor(30) as pool:
        one.exchange(GET + b"\r\n")
        base = one.resident_mib()

        def send(number: int) -> bytes:
            # Some leave in the middle.
            return one.exchange(begin, *[bytes(MIB)] * (31 if number % 3 else 20), b"" if number % 3 else b"GET")[:12]

        answers = set(pool.map(send, range(150)))
        assert answers <= {b"HTTP/1.1 503", b"HTTP/1.1 408", b""}
        assert one.resident_mib("HWM") - base < 512
        wait_until(lambda: not one.count("buffered_bytes{}"), 40)
        assert one.resident_mib() - base < 60


@pytest.mark.slow
def test_closed_tls_connections_are_freed(tls: dict[str, Any]) -> None:
    """Each has a buffer of 256 KiB, which no timer may keep."""
    with lonely_gateway(**tls) as one:
        one.exchange(GET + b"\r\n")
        base = one.resident_mib()
        for _ in range(300):
            one.exchange(GET, b"x" * (256 << 10))
        assert one.resident_mib() - base < 40
