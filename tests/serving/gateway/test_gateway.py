"""A real gateway before a real server: what it answers and refuses, and what it makes of a Triton that goes away."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.http
from PIL import Image

from plurum.client import EnsembleClient
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.serving.triton.metrics import metrics_at
from tests.docs.pages import wait_for_counts
from tests.serving.triton.test_server import triton_of

pytestmark = pytest.mark.triton

KEY, OTHER = "correct-horse-battery-staple", "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Gateway:
    process: subprocess.Popen[str]
    http: str
    metrics: str

    @property
    def place(self) -> tuple[str, int]:
        parts = urlsplit(self.http)
        return str(parts.hostname), int(parts.port or 0)

    def send(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection: http.client.HTTPConnection
        if self.http.startswith("https"):
            # The certificate is of the test's own making.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(*self.place, timeout=40, context=context)
        else:
            connection = http.client.HTTPConnection(*self.place, timeout=40)
        with contextlib.closing(connection):
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def predict(self, image: bytes, **headers: str) -> Reply:
        return self.send("POST", "/predict", image, **headers)

    def raw(self, sent: bytes, *, wait_s: float = 10) -> bytes:
        """What comes back for these bytes until the gateway closes the connection."""
        with socket.create_connection(self.place, timeout=wait_s) as connection:
            back = b""
            # It may answer, and close, before all is sent.
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(1 << 16):
                    back += piece
        return back

    def count(self, sample: str) -> float:
        return metrics_at(self.metrics).get(f"plurum_gateway_{sample}", 0.0)


@contextlib.contextmanager
def gateway(triton: str, *options: str) -> Iterator[Gateway]:
    command = [sys.executable, "-m", "plurum", "gateway", "--triton", triton, "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Gateway(process, **json.loads(process.stdout.readline()))
            process.terminate()
            process.wait(20)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def door(served: Server) -> Iterator[Gateway]:
    with gateway(served.urls.grpc, "--max-body-mib", "1", "--max-files", "12", "--receive-s", "3") as one:
        wait_until_ready(one)
        yield one


@pytest.fixture(scope="module")
def images(run: Run) -> list[bytes]:
    kinds = ("PNG", "JPEG", "TIFF")
    found = []
    for at, pixels in enumerate(np.array(run.pixels()[40:50])):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kinds[at % 3])
        found.append(file.getvalue())
    return found


def wait_until_ready(one: Gateway, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while one.send("GET", "/v2/health/ready").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def form(*files: tuple[str, str, bytes]) -> tuple[bytes, str]:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for field, name, data in files
    ]
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_an_image_gets_the_answer_that_the_client_gets(door: Gateway, served: Server, images: list[bytes]) -> None:
    with EnsembleClient(served.urls.grpc) as client:
        expected = client.predict(images, batch_size=1)
    for image, prediction in zip(images, expected, strict=True):
        reply = door.predict(image)
        assert reply.status == 200
        assert reply.json.pop("ensemble") == "digits-test"
        assert {k: v for k, v in reply.json.items() if k != "ensemble"} == prediction.to_dict()


def test_a_form_with_one_file_is_answered_as_the_file_itself(door: Gateway, images: list[bytes]) -> None:
    body, kind = form(("file", "one.png", images[0]))
    assert door.send("POST", "/predict", body, Content_Type=kind).json == door.predict(images[0]).json


def test_in_a_form_with_many_a_bad_file_hurts_nobody(door: Gateway, images: list[bytes]) -> None:
    sent = [("files", f"{at}.img", image) for at, image in enumerate(images)]
    sent.insert(3, ("files", "bad.png", images[0][:60]))
    sent.insert(7, ("files", "none.txt", b"no image at all"))
    body, kind = form(*sent)
    reply = door.send("POST", "/predict", body, Content_Type=kind)
    assert reply.status == 200
    assert [answer["file"] for answer in reply.json] == [name for _, name, _ in sent]
    errors = {answer["file"]: answer["error"] for answer in reply.json if "error" in answer}
    assert set(errors) == {"bad.png", "none.txt"}
    assert "corrupt or truncated" in errors["bad.png"]
    assert "not a JPEG, PNG or TIFF" in errors["none.txt"]
    answered = {answer["file"]: answer["label"] for answer in reply.json if "label" in answer}
    assert answered == {f"{at}.img": door.predict(image).json["label"] for at, image in enumerate(images)}


def test_the_field_files_always_gets_a_list(door: Gateway, images: list[bytes]) -> None:
    body, kind = form(("files", "one.png", images[0]))
    (answer,) = door.send("POST", "/predict", body, Content_Type=kind).json
    assert answer == {"file": "one.png"} | door.predict(images[0]).json


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client_sees_no_difference(door: Gateway, served: Server, run: Run, *, binary: bool) -> None:
    pixels = np.array(run.pixels()[40:43])
    answers = []
    for url in (door.http, served.urls.http):
        with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
            tensor = tritonclient.http.InferInput("PIXELS", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            wanted = [
                tritonclient.http.InferRequestedOutput(name, binary_data=binary)
                for name in ("PROBABILITIES", "LABEL", "REVIEW", "MEMBER_PROBABILITIES")
            ]
            result = client.infer("ensemble_pixels", [tensor], outputs=wanted, request_id="mine")
            assert client.is_server_ready()
            assert client.is_model_ready("ensemble_pixels")
            described = client.get_model_metadata("ensemble_pixels")
            outputs = {output["name"]: output for output in described["outputs"]}
            answers.append((result, described["inputs"], outputs))
    (through, *shape), (direct, *expected) = answers
    assert shape == expected
    assert through.get_response()["id"] == "mine"
    for name in ("PROBABILITIES", "LABEL", "REVIEW", "MEMBER_PROBABILITIES"):
        np.testing.assert_array_equal(through.as_numpy(name), direct.as_numpy(name))


def test_our_own_client_works_through_it(door: Gateway, served: Server, images: list[bytes]) -> None:
    with EnsembleClient(door.http) as through, EnsembleClient(served.urls.grpc) as direct:
        # A gateway states names and sizes, but not the rest of the metadata.
        told = replace(direct.served, checkpoints=(), patient_rule=None, metadata_sha256=through.served.metadata_sha256)
        assert through.served == told
        assert through.served.metadata_sha256 != direct.served.metadata_sha256
        assert through.predict(images, batch_size=1) == direct.predict(images, batch_size=1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/voter/load"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/ensemble/stats"),
        ("GET", "/v2/models/voter"),
        ("GET", "/v2/models/voter/config"),
        ("POST", "/v2/models/resnet10t/infer"),
        ("POST", "/v2/models/../models/voter/infer"),
        ("POST", "/v2/models/ensemble%2F..%2Fvoter/infer"),
        ("POST", "/v2/models/ensemble_fused/infer"),
        ("GET", "/metrics"),
        ("GET", "/"),
    ],
)
def test_nothing_else_passes(door: Gateway, method: str, path: str) -> None:
    body = b'{"inputs": [{"name": "PIXELS", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}'
    reply = door.send(method, path, body if method == "POST" else b"")
    assert reply.status == 404
    assert set(reply.json) == {"error"}


def infer_json(**changes: Any) -> bytes:
    tensor = {"name": "PIXELS", "shape": [1, 1], "datatype": "UINT8", "data": [1]} | changes
    return json.dumps({"inputs": [tensor]}).encode()


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
def test_garbage_on_the_wire_is_refused_at_once(door: Gateway, images: list[bytes], kind: str) -> None:
    status, sent = GARBAGE[kind]
    began = time.monotonic()
    back = door.raw(sent)
    assert time.monotonic() - began < 5
    # Where it closed while more was coming, the answer may be lost on its way.
    assert back.startswith(f"HTTP/1.1 {status} ".encode()) or (back == b"" and len(sent) > 1 << 20)
    assert door.predict(images[0]).status == 200


NOT_A_REQUEST: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "nothing": (400, "/predict", b"", {}),
    "text": (400, "/predict", b"hello", {}),
    "JSON": (415, "/predict", b"{}", {"Content-Type": "application/json"}),
    "gzip": (415, "/predict", b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    "a form without boundary": (400, "/predict", b"x", {"Content-Type": "multipart/form-data"}),
    "a form of nothing": (400, "/predict", b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}),
    "a form that breaks off": (400, "/predict", form(("f", "f", b"x" * 99))[0][:70], {"Content-Type": form()[1]}),
    "too many files": (413, "/predict", form(*[("f", "f", b"x")] * 13)[0], {"Content-Type": form()[1]}),
    "many fields": (
        400,
        "/predict",
        b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\ny\r\n" * 50 + b"--b--",
        {"Content-Type": form()[1]},
    ),
    "a form that is cut off after a file": (
        400,
        "/predict",
        form(("f", "a", b"x"), ("f", "b", b"y"))[0][:-30],
        {"Content-Type": form()[1]},
    ),
    "bytes behind a form": (400, "/predict", form(("f", "a", b"x"))[0] + b"--b\r\n", {"Content-Type": form()[1]}),
    "a form of undefined": (
        415,
        "/predict",
        form(("f", "a", b"x"))[0],
        {"Content-Type": form()[1] + "; charset=undefined"},
    ),
    "a form of escapes": (
        415,
        "/predict",
        form(("f", "\\N{x", b"x"))[0],
        {"Content-Type": form()[1] + "; charset=unicode_escape"},
    ),
    "a form of utf-7": (415, "/predict", form(("f", "+", b"x"))[0], {"Content-Type": form()[1] + "; charset=utf-7"}),
    "a form in a form": (
        415,
        "/predict",
        form(("f", "a", b"x"))[0].replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n", 1),
        {"Content-Type": form()[1]},
    ),
    "a file in base64": (
        415,
        "/predict",
        form(("f", "a", b"x"))[0].replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1),
        {"Content-Type": form()[1]},
    ),
    "a name that is no UTF-8": (
        400,
        "/predict",
        form(("f", "a", b"x"))[0].replace(b'"a"', b'"\xe9"'),
        {"Content-Type": form()[1]},
    ),
    "an extended name": (
        400,
        "/predict",
        form(("f", "a", b"x"))[0].replace(b'filename="a"', b"filename*=UTF-8''a"),
        {"Content-Type": form()[1]},
    ),
    "a long boundary": (400, "/predict", b"x", {"Content-Type": "multipart/form-data; boundary=" + "b" * 71}),
    "a long head of a part": (
        400,
        "/predict",
        form(("f", "a" * 5000, b"x"))[0],
        {"Content-Type": form()[1]},
    ),
    "mixed parts": (415, "/predict", b"x", {"Content-Type": "multipart/mixed; boundary=b"}),
    "a timeout of many digits": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json()[:-1] + b', "parameters": {"timeout": 1' + b"0" * 5000 + b"}}",
        {},
    ),
    "a timeout of 0.5": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json(shape=[1, 1, 1, 1])[:-1] + b', "parameters": {"timeout": 0.5}}',
        {},
    ),
    "a deep timeout": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json(shape=[1, 1, 1, 1])[:-1] + b', "parameters": {"timeout": ' + b"[" * 300 + b"]" * 300 + b"}}",
        {},
    ),
    "NaN": (400, "/v2/models/ensemble_pixels/infer", infer_json(data=[float("nan")]), {}),
    "Infinity": (400, "/v2/models/ensemble_pixels/infer", infer_json(data=[float("inf")]), {}),
    "names twice": (400, "/v2/models/ensemble_pixels/infer", b'{"inputs": [], "inputs": []}', {}),
    "half a letter": (400, "/v2/models/ensemble_pixels/infer", b'{"id": "\\ud800", ' + infer_json()[1:], {}),
    "UTF-16": (400, "/v2/models/ensemble_pixels/infer", infer_json().decode().encode("utf-16"), {}),
    "data and bytes": (400, "/v2/models/ensemble_pixels/infer", infer_json(parameters={"binary_data_size": 0}), {}),
    "true bytes": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json(data=None, parameters={"binary_data_size": True}),
        {},
    ),
    "another encoding on the way": (415, "/predict", b"", {"Transfer-Encoding": "gzip, chunked"}),
    "a deadline of words": (400, "/predict", b"x", {"X-Deadline-Ms": "soon"}),
    "no JSON": (400, "/v2/models/ensemble/infer", b"\xff\xfe{", {}),
    "nested": (400, "/v2/models/ensemble/infer", b'{"inputs":' + b"[" * 100_000, {}),
    "nested data": (
        400,
        "/v2/models/ensemble/infer",
        b'{"inputs":[{"name":"PIXELS","shape":[1],"datatype":"UINT8","data":' + b"[" * 500 + b"]" * 500 + b"}]}",
        {},
    ),
    "a huge shape": (400, "/v2/models/ensemble_pixels/infer", infer_json(shape=[2**31 - 1] * 8), {}),
    "a negative shape": (400, "/v2/models/ensemble_pixels/infer", infer_json(shape=[-1, 4]), {}),
    "ragged": (400, "/v2/models/ensemble_pixels/infer", infer_json(data=[[1, 2], [3]]), {}),
    "floats": (400, "/v2/models/ensemble_pixels/infer", infer_json(data=[1.5]), {}),
    "words": (400, "/v2/models/ensemble_pixels/infer", infer_json(data=["a" * 9999, {}, None]), {}),
    "another type": (400, "/v2/models/ensemble_pixels/infer", infer_json(datatype="FP64"), {}),
    "another name": (400, "/v2/models/ensemble_pixels/infer", infer_json(name="LOGITS_0"), {}),
    "shared memory": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json(parameters={"shared_memory_region": "x"}),
        {},
    ),
    "no inputs": (400, "/v2/models/ensemble/infer", b'{"inputs": []}', {}),
    "bytes that aren't there": (
        400,
        "/v2/models/ensemble_pixels/infer",
        infer_json(parameters={"binary_data_size": 9}),
        {},
    ),
    "a bad JSON length": (400, "/v2/models/ensemble/infer", b"{}", {"Inference-Header-Content-Length": "9"}),
    "no JSON length": (400, "/v2/models/ensemble/infer", b"{}", {"Inference-Header-Content-Length": "\xb2"}),
}


@pytest.mark.parametrize("kind", NOT_A_REQUEST)
def test_what_is_no_request_gets_a_reason(door: Gateway, kind: str) -> None:
    status, path, body, headers = NOT_A_REQUEST[kind]
    began = time.monotonic()
    reply = door.send("POST", path, body, **headers)
    assert (reply.status, time.monotonic() - began < 5) == (status, True), reply.body
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


def test_a_raw_binary_request_is_answered_as_triton_answers_it(
    door: Gateway, served: Server, run: Run, images: list[bytes]
) -> None:
    pixels = np.array(run.pixels()[40]).tobytes()
    for model, body in (("ensemble", images[0]), ("ensemble_pixels", pixels)):
        path = f"/v2/models/{model}/infer"
        through = door.send("POST", path, body, Inference_Header_Content_Length="0")
        direct = replace(door, http=served.urls.http).send("POST", path, body, Inference_Header_Content_Length="0")
        assert through.status == direct.status == 200
        parts = []
        for reply in (through, direct):
            size = int(reply.headers["inference-header-content-length"])
            parts.append((json.loads(reply.body[:size])["outputs"], reply.body[size:]))
        ours, theirs = ({one["name"]: one["parameters"]["binary_data_size"] for one in outputs} for outputs, _ in parts)
        assert ours == theirs
        assert len(parts[0][1]) == len(parts[1][1])
        assert [one["shape"][0] for one in parts[0][0]] == [1] * len(ours)
    reply = door.send("POST", "/v2/models/ensemble_pixels/infer", pixels[1:], Inference_Header_Content_Length="0")
    assert (reply.status, reply.json["error"]) == (
        400,
        "PIXELS: expected 3072 bytes for shape [1, 32, 32, 3], got 3071",
    )


def test_what_is_said_of_an_image_must_be_so(door: Gateway, images: list[bytes]) -> None:
    one = counted(images[0])
    told: list[tuple[list[int], bytes, str]] = [
        ([1], one, "IMAGE: expected shape [batch, 1], got [1]. Add the batch dimension in front."),
        ([1, 1, 1], one, "IMAGE: expected shape [batch, 1], got [1, 1, 1]. Give each dimension its size."),
        ([0, 1], one, "inputs.0.shape.0: Input should be greater than or equal to 1"),
        ([2, 1], one, "IMAGE: expected 2 elements for shape [2, 1], got 1"),
        ([1, 1], one * 2, "IMAGE: expected 1 elements for shape [1, 1], got 2"),
        ([1, 1], images[0], "bytes in element 0, as its length states, got"),
        ([1, 1], one[:3], "the length of element 0 is truncated"),
        (
            [1, 1],
            counted(base64.b64encode(images[0])),
            "IMAGE: expected the bytes of an image, got base64 text. Send the raw bytes.",
        ),
    ]
    for shape, raw, text in told:
        body, headers = tensor(shape, raw)
        reply = door.send("POST", "/v2/models/ensemble/infer", body, **headers)
        assert reply.status == 400
        assert text in reply.json["error"]
    for name in ("IMAGE\0", "IM AGE", "", "x" * 200):
        body, headers = tensor([1, 1], one, name=name)
        reply = door.send("POST", "/v2/models/ensemble/infer", body, **headers)
        assert (reply.status, reply.json["error"][:13]) == (400, "inputs.0.name")
    body, headers = tensor([1, 1], one)
    assert door.send("POST", "/v2/models/ensemble/infer", body, **headers).status == 200


def test_base64_is_told_wherever_it_is_sent(door: Gateway, images: list[bytes]) -> None:
    texts = [base64.b64encode(image) for image in images[:3]]
    for text in (*texts, b"data:image/png;base64," + texts[0]):
        reply = door.predict(text)
        assert (reply.status, reply.json["error"]) == (
            400,
            "IMAGE: expected the bytes of an image, got base64 text. Send the raw bytes.",
        )
    body, kind = form(("files", "good", images[0]), ("files", "text", texts[0]))
    good, bad = door.send("POST", "/predict", body, Content_Type=kind).json
    assert "label" in good
    assert bad == {
        "file": "text",
        "error": "IMAGE: expected the bytes of an image, got base64 text. Send the raw bytes.",
    }
    raw = door.send("POST", "/v2/models/ensemble/infer", texts[0], Inference_Header_Content_Length="0")
    assert (raw.status, raw.json["error"]) == (
        400,
        "IMAGE: expected the bytes of an image, got base64 text. Send the raw bytes.",
    )


def test_a_bomb_is_refused_before_it_is_decoded(door: Gateway) -> None:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    reply = door.predict(file.getvalue())
    assert reply.status == 400
    assert "too large" in reply.json["error"]


def test_whoever_sends_slowly_is_cut_off(door: Gateway) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        # Nothing, half a head, half a body.
        backs = list(pool.map(door.raw, [b"", head, head + b"\r\nhalf a body"]))
        assert 0.9 < time.monotonic() - began < 8
    assert [back.split(b"\r\n")[0] for back in backs] == [b"HTTP/1.1 408 Request Timeout"] * 3
    assert door.count('connections_refused_total{reason="slow"}') >= 3


def test_a_deadline_that_passes_is_said_and_the_answer_thrown_away(door: Gateway, images: list[bytes]) -> None:
    before = door.count("thrown_away_total{}")
    late = door.predict(images[0], X_Deadline_Ms="0.2")
    assert late.status == 504
    assert "deadline of 0 ms" in late.json["error"]
    body = json.loads(infer_json(shape=[1, 32, 32, 3], data=[0] * 3072)) | {"parameters": {"timeout": 200}}
    assert door.send("POST", "/v2/models/ensemble_pixels/infer", json.dumps(body)).status == 504
    assert door.count("thrown_away_total{}") == before + 2
    # What is late still has its place, until Triton has answered it.
    deadline = time.monotonic() + 5
    while door.count("in_flight{}"):
        assert time.monotonic() < deadline
    assert door.predict(images[0], X_Deadline_Ms="20000").status == 200


def test_a_request_keeps_its_name_unless_that_is_the_probes(door: Gateway, served: Server, images: list[bytes]) -> None:
    assert door.predict(images[0], X_Request_ID="visit-7").headers["x-request-id"] == "visit-7"

    def predictions() -> float:
        samples = wait_for_counts(served.urls.metrics)
        return sum(value for name, value in samples.items() if name.startswith("plurum_predictions_total"))

    before = predictions()
    for name in ("plurum-probe", "two words", "x" * 65):
        reply = door.predict(images[0], X_Request_ID=name)
        assert len(reply.headers["x-request-id"]) == 16
    assert predictions() == before + 3


def test_what_happened_is_counted(door: Gateway, images: list[bytes]) -> None:
    samples = ('requests_total{key="",route="predict",status="200"}', 'refused_total{reason="malformed"}')
    before = [door.count(sample) for sample in samples]
    door.predict(images[0])
    door.predict(b"junk")
    body, kind = form(("files", "good", images[0]), ("files", "bad", b"junk"))
    door.send("POST", "/predict", body, Content_Type=kind)
    assert [door.count(sample) for sample in samples] == [before[0] + 2, before[1] + 2]
    assert door.count("ready{}") == 1
    assert door.count("buffered_bytes{}") == 0
    assert door.count('request_seconds_count{route="predict"}') > 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_keys_tls_and_the_log(
    served: Server, images: list[bytes], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# who may ask\nclinic:{hashlib.sha256(KEY.encode()).hexdigest()}\n\n{OTHER}\n")
    keys.chmod(0o600)
    cert, key = certificate
    options = ["--keys", keys, "--tls-cert", cert, "--tls-key", key, "--access-log"]
    with gateway(served.urls.grpc, *map(str, options)) as one:
        assert one.http.startswith("https://")
        # Health is for load balancers.
        wait_until_ready(one)
        for refused in ({}, {"X_API_Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}):
            reply = one.predict(images[0], **refused)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert one.send("GET", "/v2").status == 401
        assert one.predict(images[0], Authorization=f"Bearer {KEY}", X_Request_ID="a-1").status == 200
        assert one.predict(images[0], X_API_Key=OTHER).status == 200
        assert one.count('requests_total{key="clinic",route="predict",status="200"}') == 1
        assert one.count('requests_total{key="line-4",route="predict",status="200"}') == 1
        assert one.count('refused_total{reason="no_key"}') == 5
        one.process.terminate()
        out, err = one.process.communicate(timeout=20)
    assert one.process.returncode == 0
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    (named,) = [line for line in lines if line["id"] == "a-1"]
    assert (named["key"], named["path"], named["status"], named["reason"]) == ("clinic", "/predict", 200, "")
    assert not {KEY, OTHER, KEY[:-1]} & set(out.replace('"', " ").split())


def test_more_than_it_can_take_is_refused_at_once_and_a_signal_lets_the_rest_finish(
    served: Server, images: list[bytes]
) -> None:
    with gateway(served.urls.grpc, "--max-in-flight", "1", "--max-waiting", "3") as one:
        wait_until_ready(one)
        body, kind = form(*[("files", str(at), image) for at, image in enumerate(images[:8])])

        def ask(_: int) -> tuple[Reply, float]:
            began = time.monotonic()
            return one.send("POST", "/predict", body, Content_Type=kind), time.monotonic() - began

        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(ask, range(24)))
            statuses = {reply.status for reply, _ in replies}
            assert statuses == {200, 503}
            for reply, took_s in replies:
                if reply.status == 503:
                    assert reply.headers["retry-after"] == "1"
                    assert "are waiting" in reply.json["error"]
                    assert took_s < 2
            last = [pool.submit(ask, at) for at in range(4)]
            deadline = time.monotonic() + 5
            while one.count("waiting{}") < 2:
                assert time.monotonic() < deadline
            one.process.send_signal(signal.SIGTERM)
            assert {future.result()[0].status for future in last} <= {200, 503}
            assert [future.result()[0].status for future in last].count(200) >= 3
        assert one.process.wait(20) == 0


def test_a_client_that_goes_away_harms_nobody(door: Gateway, images: list[bytes]) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(images[0])}\r\n\r\n".encode()
    for _ in range(30):
        with socket.create_connection(door.place) as connection:
            connection.sendall(head + images[0])
    with ThreadPoolExecutor(4) as pool:
        assert {reply.status for reply in pool.map(door.predict, images)} == {200}


def test_a_triton_that_dies_costs_time_and_no_errors_and_a_dead_voter_is_noticed(
    repository: Path, images: list[bytes]
) -> None:
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as first:
        port = int(first.urls.grpc.rpartition(":")[2])
        with gateway(first.urls.grpc) as one, ThreadPoolExecutor(4) as pool:
            wait_until_ready(one)
            end = time.monotonic() + 30
            stop = False

            def keep_asking(_: int) -> list[int]:
                statuses = []
                while not stop and time.monotonic() < end:
                    statuses.append(one.predict(images[0]).status)
                return statuses

            asking = [pool.submit(keep_asking, at) for at in range(4)]
            time.sleep(0.3)
            os.kill(triton_of(first), signal.SIGKILL)
            time.sleep(0.7)
            assert one.send("GET", "/v2/health/ready").status == 503
            with Server(repository, ServerSettings(http_port=0, grpc_port=port, metrics_port=0)) as second:
                wait_until_ready(one)
                time.sleep(0.5)
                stop = True
                statuses = [status for future in asking for status in future.result()]
                check_that_a_dead_voter_is_noticed(second, one, images[0])
            assert len(statuses) > 20
            assert set(statuses) == {200}
            assert one.count("triton_returns_total{}") == 1
            assert one.count("asked_again_total{}") >= 4
    first.log.path.unlink(missing_ok=True)


def check_that_a_dead_voter_is_noticed(server: Server, one: Gateway, image: bytes) -> None:
    os.kill(voter_of(server), signal.SIGKILL)
    died = time.monotonic()
    while one.send("GET", "/v2/health/ready").status == 200:
        assert time.monotonic() - died < 6
        time.sleep(0.05)
    assert one.send("GET", "/v2/models/ensemble/ready").status == 503
    with urllib.request.urlopen(f"{server.urls.http}/v2/health/ready", timeout=5) as triton:
        assert triton.status == 200
    reply = one.predict(image, X_Deadline_Ms="500")
    assert (reply.status, reply.json["error"]) == (503, "Triton does not respond at the moment")
    assert one.count("ready{}") == 0


def voter_of(server: Server) -> int:
    (found,) = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit()
        and (line := (folder / "cmdline").read_bytes().replace(b"\0", b" "))
        and server.name.encode() in line
        and b"/models/voter" in line
    ]
    return found


def test_without_triton_it_says_so(images: list[bytes]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with gateway(f"127.0.0.1:{port}", "--deadline-s", "0.5") as one:
        assert one.send("GET", "/v2/health/live").status == 200
        for reply in (
            one.send("GET", "/v2/health/ready"),
            one.predict(images[0]),
            one.send("GET", "/v2/models/ensemble"),
        ):
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json == {"error": "Triton does not respond at the moment"}
