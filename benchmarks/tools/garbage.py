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

__all__ = ["GARBAGE", "Garbage"]

_PREDICT, _INFER, _PIXELS = "/predict", "/v2/models/ensemble/infer", "/v2/models/ensemble_pixels/infer"
_REFUSED, _UNSUPPORTED, _TOO_LARGE, _TOO_LONG = map(frozenset, ({400}, {415}, {413}, {431, 0}))
_FORM = "multipart/form-data; boundary=b"
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
# Makes bytes from random numbers.
Draw = Callable[[random.Random], bytes]


def _body(draw: Draw, path: str = _PREDICT, statuses: frozenset[int] = _REFUSED, **headers: object) -> Maker:
    return lambda _, chance: Garbage(post(path, draw(chance), **headers), statuses)


def _image(change: Callable[[bytes, random.Random], bytes], statuses: frozenset[int] = _REFUSED) -> Maker:
    return lambda image, chance: Garbage(post(_PREDICT, change(image, chance)), statuses)


def _wire(draw: Draw, statuses: frozenset[int] = _REFUSED) -> Maker:
    return lambda _, chance: Garbage(draw(chance), statuses, alone=True)


def _route(path: str) -> Maker:
    return lambda _, chance: Garbage(post(path.format(chance.randrange(10**6)), b"{}"), frozenset({404, 405}))


def _tensor(field: str, draw: Callable[[random.Random], object], **others: object) -> Maker:
    def make(_: bytes, chance: random.Random) -> Garbage:
        tensor = {"name": "PIXELS", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12}
        return Garbage(post(_PIXELS, json.dumps({"inputs": [tensor | others | {field: draw(chance)}]}).encode()))

    return make


def _change_bytes(image: bytes, chance: random.Random) -> bytes:
    changed = bytearray(image)
    for _ in range(chance.randint(1, 40)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _empty_image(mode: str, width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def _broken_form(image: bytes, chance: random.Random) -> Garbage:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + image
    return Garbage(post(_PREDICT, part[: chance.randint(10, len(part))], content_type=_FORM))


def _deep_data(chance: random.Random) -> bytes:
    depth = chance.randint(300, 5000)
    head = b'{"inputs":[{"name":"PIXELS","shape":[1],"datatype":"UINT8","data":'
    return head + b"[" * depth + b"]" * depth + b"}]}"


def _large(chance: random.Random) -> bytes:
    size = chance.randint(1 << 31, 1 << 40)
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + bytes(1000)


def _trailers(chance: random.Random) -> bytes:
    field = b"x: " + b"y" * chance.randint(1, 900) + b"\r\n"
    return _CHUNKED + b"5\r\nhello\r\n0\r\n" + field * ((1 << 20) // len(field))


def _bulk(chance: random.Random) -> bytes:
    return bytes(chance.randint(500_000, 1_000_000))


GARBAGE: dict[str, Maker] = {
    # Some are still images.
    "fuzzed image": _image(_change_bytes, frozenset({200, 400})),
    "truncated JPEG": _image(lambda image, chance: image[: chance.randint(4, len(image) * 3 // 4)]),
    "random bytes for an image": _body(lambda chance: chance.randbytes(chance.randint(1, 5000))),
    "no image": _body(lambda _: b""),
    "bomb": _body(lambda chance: _empty_image("1", 9000 + chance.randrange(9), 9000, "PNG")),
    "another format": _body(lambda chance: _empty_image("L", 8 + chance.randrange(9), 8, "GIF")),
    "JSON for an image": _body(lambda _: b"{}", statuses=_UNSUPPORTED, content_type="application/json"),
    "compressed body": _body(lambda chance: chance.randbytes(99), statuses=_UNSUPPORTED, content_encoding="gzip"),
    "form that breaks off": _broken_form,
    "form of another charset": _body(
        lambda _: b"--b--", statuses=_UNSUPPORTED, content_type=f"{_FORM}; charset=undefined"
    ),
    "large form of nothing": _body(_bulk, content_type=_FORM),
    "large body that is no image": _body(_bulk),
    "image as base64": _image(lambda image, _: base64.b64encode(image)),
    "trailers without end": _wire(_trailers, _TOO_LONG),
    "extension without end": _wire(
        lambda chance: _CHUNKED + b"5;" + b"y" * chance.randint(1 << 19, 1 << 20), _TOO_LONG
    ),
    "deadline of words": _body(lambda _: b"x", x_deadline_ms="soon"),
    "no JSON": _body(lambda chance: b"\xff" + chance.randbytes(50), _INFER),
    "deep JSON": _body(lambda chance: b'{"inputs":' + b"[" * chance.randint(1000, 100_000), _INFER),
    "deep data": _body(_deep_data, _PIXELS),
    "no inputs": _body(lambda _: b'{"inputs": []}', _INFER),
    "wrong name": _tensor("name", lambda chance: f"T{chance.randrange(999)}"),
    "wrong type": _tensor("datatype", lambda chance: chance.choice(("FP64", "INT8", "BYTES", "FP8", ""))),
    "wrong shape": _tensor("shape", lambda chance: [1, 2, chance.randint(3, 99), 3]),
    "other size": _tensor("shape", lambda chance: [1, 1, 1, chance.randint(4, 9)], data=[0] * 9),
    "huge shape": _tensor("shape", lambda _: [2**31 - 1] * 8),
    "negative shape": _tensor("shape", lambda chance: [-chance.randint(1, 99), 12]),
    "ragged data": _tensor("data", lambda _: [[1, 2], [3]]),
    "numbers out of range": _tensor("data", lambda chance: [chance.randint(256, 10**30)] * 12),
    "words for numbers": _tensor("data", lambda _: ["a" * 999, {}, None]),
    "bytes that aren't there": _tensor("parameters", lambda chance: {"binary_data_size": chance.randint(1, 10**9)}),
    "shared memory": _tensor("parameters", lambda _: {"shared_memory_region": "x", "shared_memory_byte_size": 12}),
    "wrong length of JSON": _body(lambda _: b"{}", _INFER, inference_header_content_length="9"),
    "wrong route": _route("/{}"),
    "another model": _route("/v2/models/m{}/infer"),
    "loading a model": _route("/v2/repository/models/m{}/load"),
    "body said to be large": _wire(_large, _TOO_LARGE),
    # The server may close the connection before its response is read.
    "endless body": _wire(
        lambda chance: _CHUNKED + (b"10000\r\n" + chance.randbytes(1 << 16) + b"\r\n") * 24, _TOO_LARGE | {0}
    ),
    "random bytes on the wire": _wire(lambda chance: b"\x00" + chance.randbytes(2000)),
    "TLS on the wire": _wire(lambda chance: b"\x16\x03\x01\x02\x00\x01" + chance.randbytes(500)),
    "two lengths": _wire(lambda _: b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345"),
    "bad chunk": _wire(lambda _: _CHUNKED + b"zz\r\n1"),
    "endless head": _wire(
        lambda chance: b"GET / HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 900) * chance.randint(600, 900), _TOO_LONG
    ),
    "slow sender": _wire(lambda _: b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n", frozenset({408})),
}
