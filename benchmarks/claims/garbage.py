"""Kinds of garbage that a server on a network receives, each with its correct statuses.

Every kind draws its bytes from a random number generator, so that no two are equal if possible.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from plurum.benchmarks.tools.wire import post

__all__ = ["GARBAGE", "Garbage", "garbage"]

_INFER, _PIXELS = "/v2/models/ensemble/infer", "/v2/models/ensemble_pixels/infer"
_REFUSED, _EITHER = frozenset({400}), frozenset({200, 400})
_CHUNKED = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Garbage:
    """Bytes to send.

    Attributes:
        sent: Bytes of the request.
        statuses: Correct statuses; 0 stands for a connection that is closed before the response was read.
        alone: If True, the connection cannot be used afterwards.
    """

    sent: bytes
    statuses: frozenset[int] = _REFUSED
    alone: bool = False


# Makes garbage from a valid JPEG and random numbers.
Maker = Callable[[bytes, random.Random], Garbage]


def garbage(kind: str, image: bytes, chance: random.Random) -> Garbage:
    """Return one of a kind, made from a valid JPEG."""
    return GARBAGE[kind](image, chance)


def _tensor(**changed: object) -> Garbage:
    tensor = {"name": "PIXELS", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12} | changed
    return Garbage(post(_PIXELS, json.dumps({"inputs": [tensor]}).encode()))


def _fuzzed(image: bytes, chance: random.Random) -> Garbage:
    changed = bytearray(image)
    for _ in range(chance.randint(1, 40)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    # Some are still images.
    return Garbage(post("/predict", bytes(changed)), _EITHER)


def _truncated(image: bytes, chance: random.Random) -> Garbage:
    return Garbage(post("/predict", image[: chance.randint(4, len(image) * 3 // 4)]))


def _bomb(_: bytes, chance: random.Random) -> Garbage:
    file = io.BytesIO()
    Image.new("1", (9000 + chance.randrange(9), 9000)).save(file, "PNG")
    return Garbage(post("/predict", file.getvalue()))


def _gif(_: bytes, chance: random.Random) -> Garbage:
    file = io.BytesIO()
    Image.new("L", (8 + chance.randrange(9), 8)).save(file, "GIF")
    return Garbage(post("/predict", file.getvalue()))


def _form(image: bytes, chance: random.Random) -> Garbage:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + image
    whole = part[: chance.randint(10, len(part))]
    return Garbage(post("/predict", whole, content_type="multipart/form-data; boundary=b"))


def _deep(_: bytes, chance: random.Random) -> Garbage:
    return Garbage(post(_INFER, b'{"inputs":' + b"[" * chance.randint(1000, 100_000)))


def _deep_data(_: bytes, chance: random.Random) -> Garbage:
    depth = chance.randint(300, 5000)
    data = b"[" * depth + b"]" * depth
    head = b'{"inputs":[{"name":"PIXELS","shape":[1],"datatype":"UINT8","data":'
    return Garbage(post(_PIXELS, head + data + b"}]}"))


def _large(_: bytes, chance: random.Random) -> Garbage:
    size = chance.randint(1 << 31, 1 << 40)
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    return Garbage(head.encode() + bytes(1000), frozenset({413}), alone=True)


def _endless(_: bytes, chance: random.Random) -> Garbage:
    piece = b"10000\r\n" + chance.randbytes(1 << 16) + b"\r\n"
    # The server may close the connection before its response is read.
    return Garbage(_CHUNKED + piece * 24, frozenset({413, 0}), alone=True)


def _bulky(**headers: object) -> Maker:
    def make(_: bytes, chance: random.Random) -> Garbage:
        return Garbage(post("/predict", bytes(chance.randint(500_000, 1_000_000)), **headers))

    return make


def _trailers(_: bytes, chance: random.Random) -> Garbage:
    field = b"x: " + b"y" * chance.randint(1, 900) + b"\r\n"
    sent = _CHUNKED + b"5\r\nhello\r\n0\r\n" + field * ((1 << 20) // len(field))
    return Garbage(sent, frozenset({431, 0}), alone=True)


def _extensions(_: bytes, chance: random.Random) -> Garbage:
    return Garbage(_CHUNKED + b"5;" + b"y" * chance.randint(1 << 19, 1 << 20), frozenset({431, 0}), alone=True)


def _text(image: bytes, _: random.Random) -> Garbage:
    return Garbage(post("/predict", base64.b64encode(image)))


def _wire(statuses: frozenset[int], make: Callable[[random.Random], bytes]) -> Maker:
    return lambda _, chance: Garbage(make(chance), statuses, alone=True)


def _body(path: str, make: Callable[[random.Random], bytes], status: int = 400, **headers: object) -> Maker:
    return lambda _, chance: Garbage(post(path, make(chance), **headers), frozenset({status}))


def _route(path: str) -> Maker:
    return lambda _, chance: Garbage(post(path.format(chance.randrange(10**6)), b"{}"), frozenset({404, 405}))


GARBAGE: dict[str, Maker] = {
    "fuzzed image": _fuzzed,
    "truncated JPEG": _truncated,
    "random bytes for an image": _body("/predict", lambda chance: chance.randbytes(chance.randint(1, 5000))),
    "no image": _body("/predict", lambda _: b""),
    "bomb": _bomb,
    "another format": _gif,
    "JSON for an image": _body("/predict", lambda _: b"{}", 415, content_type="application/json"),
    "compressed body": _body("/predict", lambda chance: chance.randbytes(99), 415, content_encoding="gzip"),
    "form that breaks off": _form,
    "form of another charset": _body(
        "/predict", lambda _: b"--b--", 415, content_type="multipart/form-data; boundary=b; charset=undefined"
    ),
    "large form of nothing": _bulky(content_type="multipart/form-data; boundary=b"),
    "large body that is no image": _bulky(),
    "image as base64": _text,
    "trailers without end": _trailers,
    "extension without end": _extensions,
    "deadline of words": _body("/predict", lambda _: b"x", x_deadline_ms="soon"),
    "no JSON": _body(_INFER, lambda chance: b"\xff" + chance.randbytes(50)),
    "deep JSON": _deep,
    "deep data": _deep_data,
    "no inputs": _body(_INFER, lambda _: b'{"inputs": []}'),
    "wrong name": lambda _, chance: _tensor(name=f"T{chance.randrange(999)}"),
    "wrong type": lambda _, chance: _tensor(datatype=chance.choice(("FP64", "INT8", "BYTES", "FP8", ""))),
    "wrong shape": lambda _, chance: _tensor(shape=[1, 2, chance.randint(3, 99), 3]),
    "other size": lambda _, chance: _tensor(shape=[1, 1, 1, chance.randint(4, 9)], data=[0] * 9),
    "huge shape": lambda _, __: _tensor(shape=[2**31 - 1] * 8),
    "negative shape": lambda _, chance: _tensor(shape=[-chance.randint(1, 99), 12]),
    "ragged data": lambda _, __: _tensor(data=[[1, 2], [3]]),
    "numbers out of range": lambda _, chance: _tensor(data=[chance.randint(256, 10**30)] * 12),
    "words for numbers": lambda _, __: _tensor(data=["a" * 999, {}, None]),
    "bytes that aren't there": lambda _, chance: _tensor(parameters={"binary_data_size": chance.randint(1, 10**9)}),
    "shared memory": lambda _, __: _tensor(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 12}),
    "wrong length of JSON": _body(_INFER, lambda _: b"{}", inference_header_content_length="9"),
    "wrong route": _route("/{}"),
    "another model": _route("/v2/models/m{}/infer"),
    "loading a model": _route("/v2/repository/models/m{}/load"),
    "body said to be large": _large,
    "endless body": _endless,
    "random bytes on the wire": _wire(_REFUSED, lambda chance: b"\x00" + chance.randbytes(2000)),
    "TLS on the wire": _wire(_REFUSED, lambda chance: b"\x16\x03\x01\x02\x00\x01" + chance.randbytes(500)),
    "two lengths": _wire(_REFUSED, lambda _: b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345"),
    "bad chunk": _wire(_REFUSED, lambda _: _CHUNKED + b"zz\r\n1"),
    "endless head": _wire(
        frozenset({431, 0}),
        lambda chance: b"GET / HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 900) * chance.randint(600, 900),
    ),
    "slow sender": _wire(frozenset({408}), lambda _: b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"),
}
