"""Resident memory of a gateway's process, whatever clients send."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plurum.serving.triton.metrics import metrics_at
from tests.serving.gateway.gateways import Gateway, lonely_gateway, response_from

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
    "a body that nobody wants": (b"GET /v2 HTTP/1.1\r\ncontent-length: 900000000\r\n\r\n", bytes(1000)),
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


REFUSED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {}


def refused(status: int) -> Callable[[Callable[[bytes], bytes]], Callable[[bytes], bytes]]:
    def keep(make: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        REFUSED[make.__name__.strip("_").replace("_", " ")] = status, make
        return make

    return keep


def head(path: str, size: int, *lines: str, key: str = KEY) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "host: x", f"x-api-key: {key}", f"content-length: {size}", *lines, "\r\n"]
    ).encode()


INFER = "/v2/models/ensemble/infer"


@refused(401)
def no_key(body: bytes) -> bytes:
    return head("/predict", len(body), key="x" * 20) + body


@refused(404)
def unknown_path(body: bytes) -> bytes:
    return head("/predicted", len(body)) + body


@refused(405)
def unknown_method(body: bytes) -> bytes:
    return head("/predict", len(body)).replace(b"POST", b"PUT", 1) + body


@refused(413)
def too_large(body: bytes) -> bytes:
    return head("/predict", 40 * MIB) + body


@refused(413)
def too_large_without_a_length(body: bytes) -> bytes:
    key = f"x-api-key: {KEY}\r\n\r\n".encode()
    return CHUNKED[:-2] + key + b"%x\r\n%b\r\n" % (len(body), body) + b"%x\r\n%b\r\n" % (len(body), body)


@refused(413)
def too_much_json(body: bytes) -> bytes:
    return head(INFER, len(body)) + body


@refused(400)
def malformed_json(body: bytes) -> bytes:
    return head(INFER, len(body), "inference-header-content-length: 100") + body


@refused(400)
def another_size(body: bytes) -> bytes:
    tensor = {
        "name": "IMAGE",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(body) - 4096},
    }
    text = json.dumps({"inputs": [tensor]}).encode()
    text += b" " * (4096 - len(text))
    return head(INFER, len(body), "inference-header-content-length: 4096") + text + body[4096:]


@refused(400)
def malformed_form(body: bytes) -> bytes:
    return head("/predict", len(body), "content-type: multipart/form-data; boundary=b") + body


@refused(400)
def form_that_is_cut_off(body: bytes) -> bytes:
    begin = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    return head("/predict", len(body), "content-type: multipart/form-data; boundary=b") + begin + body[len(begin) :]


@refused(415)
def encoded(body: bytes) -> bytes:
    return head("/predict", len(body), "content-encoding: gzip") + body


@refused(400)
def deadline_of_words(body: bytes) -> bytes:
    return head("/predict", len(body), "x-deadline-ms: soon") + body


@refused(503)
def no_triton(body: bytes) -> bytes:
    return head("/predict", len(body), "x-deadline-ms: 50") + body


@refused(503)
def no_triton_for_a_tensor(body: bytes) -> bytes:
    begin = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(body) - 200},
                }
            ]
        }
    ).encode()
    begin += b" " * (200 - len(begin))
    image = struct.pack("<I", len(body) - 204) + body[204:]
    return head(INFER, len(body), "inference-header-content-length: 200", "x-deadline-ms: 50") + begin + image


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_bodies_are_freed(keys: Path, kind: str) -> None:
    status, make = REFUSED[kind]
    request = make(bytes(31 * MIB))
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
        assert metrics_at(one.metrics)["plurum_gateway_buffered_bytes{}"] == 0


@pytest.mark.slow
def test_many_large_bodies_stay_within_the_limit(keys: Path) -> None:
    begin = head("/predict", 31 * MIB, "x-deadline-ms: 3000")
    with lonely_gateway(keys=str(keys)) as one, ThreadPoolExecutor(30) as pool:
        one.exchange(GET + b"\r\n")
        base = one.resident_mib()

        def ask(number: int) -> bytes:
            # Some leave in the middle.
            return one.exchange(begin, *[bytes(MIB)] * (31 if number % 3 else 20), b"" if number % 3 else b"GET")[:12]

        answers = set(pool.map(ask, range(150)))
        assert answers <= {b"HTTP/1.1 503", b"HTTP/1.1 408", b""}
        assert one.resident_mib("HWM") - base < 512
        deadline = time.monotonic() + 40
        while metrics_at(one.metrics)["plurum_gateway_buffered_bytes{}"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert one.resident_mib() - base < 60
