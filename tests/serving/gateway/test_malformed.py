"""Requests that the gateway refuses, with a reason."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.gateway.gateways import Gateway, form

pytestmark = pytest.mark.triton


def infer_json(**changes: Any) -> bytes:
    tensor = {"name": "PIXELS", "shape": [1, 1], "datatype": "UINT8", "data": [1]} | changes
    return json.dumps({"inputs": [tensor]}).encode()


BASE64 = "IMAGE: expected the bytes of an image, got base64 text. Send the raw bytes."
CHUNKED = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


GARBAGE: dict[str, tuple[int, bytes]] = {
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)),
    "random bytes": (400, np.random.default_rng(0).bytes(5000)),
    "a bad length": (400, b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n"),
    "two lengths": (400, b"POST /predict HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345"),
    "length and chunks": (
        400,
        b"POST /predict HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "an endless head": (
        431,
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: " % n + b"y" * 900 + b"\r\n" for n in range(2000)),
    ),
    "a bad chunk": (400, CHUNKED + b"zz\r\n1"),
    "tiny chunks": (400, CHUNKED + b"1\r\nx\r\n" * 200_000),
    "an endless body": (413, CHUNKED + (b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 64),
    "a body said to be large": (
        413,
        b"POST /predict HTTP/1.1\r\nconnection: close\r\ncontent-length: 99999999999\r\n\r\n" + bytes(99),
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_at_once(small: Gateway, images: list[bytes], kind: str) -> None:
    status, sent = GARBAGE[kind]
    began = time.monotonic()
    back = small.raw(sent)
    assert time.monotonic() - began < 5
    # Where it closed while more was coming, the answer may be lost on its way.
    assert back.startswith(f"HTTP/1.1 {status} ".encode()) or (back == b"" and len(sent) > 1 << 20)
    assert small.predict(images[0]).status == 200


ONE_FILE, FORM = form(("f", "a", b"x"))
# Name of the case: status, body, and headers of a request to /predict.
BAD_PREDICTIONS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "nothing": (400, b"", {}),
    "text": (400, b"hello", {}),
    "JSON": (415, b"{}", {"Content-Type": "application/json"}),
    "gzip": (415, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    "another transfer encoding": (415, b"", {"Transfer-Encoding": "gzip, chunked"}),
    "a deadline of words": (400, b"x", {"X-Deadline-Ms": "soon"}),
    "a form without a boundary": (400, b"x", {"Content-Type": "multipart/form-data"}),
    "a long boundary": (400, b"x", {"Content-Type": "multipart/form-data; boundary=" + "b" * 71}),
    "mixed parts": (415, b"x", {"Content-Type": "multipart/mixed; boundary=b"}),
    "charset undefined": (415, ONE_FILE, {"Content-Type": FORM + "; charset=undefined"}),
    "charset unicode_escape": (415, form(("f", "\\N{x", b"x"))[0], {"Content-Type": FORM + "; charset=unicode_escape"}),
    "charset utf-7": (415, form(("f", "+", b"x"))[0], {"Content-Type": FORM + "; charset=utf-7"}),
}
# Name of the case: status and body of a form.
BAD_FORMS: dict[str, tuple[int, bytes]] = {
    "an empty form": (400, b"--b--\r\n"),
    "a truncated file": (400, form(("f", "f", b"x" * 99))[0][:70]),
    "a form truncated after a file": (400, form(("f", "a", b"x"), ("f", "b", b"y"))[0][:-30]),
    "too many files": (413, form(*[("f", "f", b"x")] * 13)[0]),
    "many fields": (400, b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\ny\r\n" * 50 + b"--b--"),
    "bytes after a form": (400, ONE_FILE + b"--b\r\n"),
    "a form in a form": (
        415,
        ONE_FILE.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n", 1),
    ),
    "a file in base64": (415, ONE_FILE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)),
    "a name that is not UTF-8": (400, ONE_FILE.replace(b'"a"', b'"\xe9"')),
    "an extended name": (400, ONE_FILE.replace(b'filename="a"', b"filename*=UTF-8''a")),
    "a long part header": (400, form(("f", "a" * 5000, b"x"))[0]),
}
PIXEL = infer_json(shape=[1, 1, 1, 1])[:-1]
# Name of the case: body of an inference request, which gets status 400.
BAD_INFERENCES: dict[str, bytes] = {
    "a timeout of many digits": infer_json()[:-1] + b', "parameters": {"timeout": 1' + b"0" * 5000 + b"}}",
    "a deep timeout": PIXEL + b', "parameters": {"timeout": ' + b"[" * 300 + b"]" * 300 + b"}}",
    "repeated names": b'{"inputs": [], "inputs": []}',
    "half a letter": b'{"id": "\\ud800", ' + infer_json()[1:],
    "UTF-16": infer_json().decode().encode("utf-16"),
    "data and bytes": infer_json(parameters={"binary_data_size": 0}),
    "true bytes": infer_json(data=None, parameters={"binary_data_size": True}),
    "not JSON": b"\xff\xfe{",
    "nested": b'{"inputs":' + b"[" * 100_000,
    "nested data": infer_json(data="DEEP").replace(b'"DEEP"', b"[" * 500 + b"]" * 500),
    "a huge shape": infer_json(shape=[2**31 - 1] * 8),
    "a negative shape": infer_json(shape=[-1, 4]),
    "words": infer_json(data=["a" * 9999, {}, None]),
    "another type": infer_json(datatype="FP64"),
    "another name": infer_json(name="LOGITS_0"),
    "shared memory": infer_json(parameters={"shared_memory_region": "x"}),
    "no inputs": b'{"inputs": []}',
    "missing bytes": infer_json(parameters={"binary_data_size": 9}),
}
MALFORMED: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    **{name: (status, "/predict", body, headers) for name, (status, body, headers) in BAD_PREDICTIONS.items()},
    **{name: (status, "/predict", body, {"Content-Type": FORM}) for name, (status, body) in BAD_FORMS.items()},
    **{name: (400, "/v2/models/ensemble_pixels/infer", body, {}) for name, body in BAD_INFERENCES.items()},
    **{
        f"a JSON length of {length}": (
            400,
            "/v2/models/ensemble/infer",
            b"{}",
            {"Inference-Header-Content-Length": length},
        )
        for length in ("9", "\xb2")
    },
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_requests_get_a_reason(small: Gateway, kind: str) -> None:
    status, path, body, headers = MALFORMED[kind]
    started = time.monotonic()
    reply = small.send("POST", path, body, **headers)
    assert (reply.status, time.monotonic() - started < 5) == (status, True), reply.body
    assert reply.json["error"]
    assert "Traceback" not in reply.json["error"]


def tensor(shape: list[int], raw: bytes, **changes: Any) -> tuple[bytes, dict[str, str]]:
    described = {
        "name": "IMAGE",
        "shape": shape,
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    } | changes
    text = json.dumps({"inputs": [described]}).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def counted(image: bytes) -> bytes:
    return struct.pack("<I", len(image)) + image


def test_shape_and_bytes_of_an_image_must_agree(small: Gateway, images: list[bytes]) -> None:
    one = counted(images[0])
    told: list[tuple[list[int], bytes, str]] = [
        ([1], one, "IMAGE: expected shape [batch, 1], got [1]. Add the batch dimension in front."),
        ([1, 1, 1], one, "IMAGE: expected shape [batch, 1], got [1, 1, 1]. Give each dimension its size."),
        ([0, 1], one, "inputs.0.shape.0: Input should be greater than or equal to 1"),
        ([2, 1], one, "IMAGE: expected 2 elements for shape [2, 1], got 1"),
        ([1, 1], one * 2, "IMAGE: expected 1 elements for shape [1, 1], got 2"),
        ([1, 1], images[0], "bytes in element 0, as its length states, got"),
        ([1, 1], one[:3], "the length of element 0 is truncated"),
        ([1, 1], counted(base64.b64encode(images[0])), BASE64),
    ]
    for shape, raw, text in told:
        body, headers = tensor(shape, raw)
        reply = small.send("POST", "/v2/models/ensemble/infer", body, **headers)
        assert reply.status == 400
        assert text in reply.json["error"]
    for name in ("IMAGE\0", "IM AGE", "", "x" * 200):
        body, headers = tensor([1, 1], one, name=name)
        reply = small.send("POST", "/v2/models/ensemble/infer", body, **headers)
        assert (reply.status, reply.json["error"][:13]) == (400, "inputs.0.name")
    body, headers = tensor([1, 1], one)
    assert small.send("POST", "/v2/models/ensemble/infer", body, **headers).status == 200


def test_base64_is_refused_by_name(small: Gateway, images: list[bytes]) -> None:
    texts = [base64.b64encode(image) for image in images[:3]]
    for text in (*texts, b"data:image/png;base64," + texts[0]):
        reply = small.predict(text)
        assert (reply.status, reply.json["error"]) == (400, BASE64)
    body, kind = form(("files", "good", images[0]), ("files", "text", texts[0]))
    good, bad = small.send("POST", "/predict", body, Content_Type=kind).json
    assert "label" in good
    assert bad == {"file": "text", "error": BASE64}
    raw = small.send("POST", "/v2/models/ensemble/infer", texts[0], Inference_Header_Content_Length="0")
    assert (raw.status, raw.json["error"]) == (400, BASE64)


def test_decompression_bomb_is_refused_before_decoding(small: Gateway) -> None:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    reply = small.predict(file.getvalue())
    assert reply.status == 400
    assert "too large" in reply.json["error"]
