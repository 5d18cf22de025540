"""The parts of the gateway that need no server."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from starlette.requests import ClientDisconnect
from tritonclient.grpc import service_pb2 as pb
from uvicorn.server import ServerState

from plurum.errors import ServerError, SettingsError
from plurum.options import settings_from
from plurum.predictions.wire import bytes_from_raw
from plurum.serving.gateway.admission import Admission
from plurum.serving.gateway.connections.connection import connection_class
from plurum.serving.gateway.connections.keys import read_keys
from plurum.serving.gateway.connections.middleware import GatewayMiddleware
from plurum.serving.gateway.deadlines import RequestDeadline, is_bulk, stated_s
from plurum.serving.gateway.messages.kserve import (
    MAX_JSON_BYTES,
    InferenceRequest,
    body_from_response,
    request_from_body,
)
from plurum.serving.gateway.metrics import GatewayMetrics
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.triton import ENSEMBLE, TritonConnection, image_request
from plurum.serving.triton.metrics import metrics_at
from plurum.settings.serving import GatewaySettings
from plurum.web.server import open_listener

LONG = 60.0


def run(coroutine: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(coroutine(), 10)

    asyncio.run(limited())


def test_those_who_wait_come_in_their_order_and_the_rest_is_refused() -> None:
    async def scene() -> None:
        admission, order = Admission(2, 2), []

        async def visit(name: str) -> None:
            await admission.enter(RequestDeadline.after(LONG))
            order.append(name)

        visits = [asyncio.create_task(visit(name)) for name in "abcd"]
        await asyncio.sleep(0)
        assert (order, admission.taken, admission.waiting) == (["a", "b"], 2, 2)
        with pytest.raises(RefusalError, match="2 requests are in progress and 2 are waiting") as refused:
            await admission.enter(RequestDeadline.after(LONG))
        assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "1"})
        # What was begun goes on.
        begun = asyncio.create_task(admission.enter(RequestDeadline.after(LONG), accepted=True))
        await asyncio.sleep(0)
        for _ in range(3):
            admission.leave()
        assert await begun
        await asyncio.gather(*visits)
        assert (order, admission.taken, admission.waiting) == (list("abcd"), 2, 0)
        admission.leave()
        admission.leave()
        assert (admission.taken, await admission.enter(RequestDeadline.after(LONG))) == (0, False)

    run(scene)


def test_bulk_requests_let_others_go_first_and_make_room() -> None:
    async def scene() -> None:
        admission, order = Admission(1, 2), []

        async def visit(name: str, *, bulk: bool) -> None:
            await admission.enter(RequestDeadline.after(LONG, bulk=bulk))
            order.append(name)

        await visit("first", bulk=True)
        visits = [asyncio.create_task(visit(name, bulk=True)) for name in ("early", "late")]
        await asyncio.sleep(0)
        urgent = asyncio.create_task(visit("urgent", bulk=False))
        with pytest.raises(RefusalError, match="1 requests are in progress and 2 are waiting"):
            await visits[1]
        # Neither a bulk request nor, where none waits, another one makes room.
        with pytest.raises(RefusalError, match="2 are waiting"):
            await visit("bulk", bulk=True)
        # Told before anything is done for it, too.
        with pytest.raises(RefusalError, match="2 are waiting"):
            admission.check(RequestDeadline.after(LONG, bulk=True))
        for _ in range(2):
            admission.leave()
            await asyncio.sleep(0.01)
        await asyncio.gather(urgent, visits[0])
        assert order == ["first", "urgent", "early"]
        admission.leave()
        admission.check(RequestDeadline.after(LONG))
        assert (admission.taken, admission.waiting) == (0, 0)

    run(scene)
    assert [is_bulk(text) for text in (None, "interactive", "bulk")] == [False, False, True]
    with pytest.raises(RefusalError, match="X-Priority: expected bulk or interactive, got 'high'"):
        is_bulk("high")


def test_who_waits_too_long_or_goes_leaves_no_hole() -> None:
    async def scene() -> None:
        admission = Admission(1, 5)
        await admission.enter(RequestDeadline.after(LONG))
        with pytest.raises(RefusalError, match="within the request's deadline of 10 ms"):
            await admission.enter(RequestDeadline.after(0.01))
        gone = asyncio.create_task(admission.enter(RequestDeadline.after(LONG)))
        called = asyncio.create_task(admission.enter(RequestDeadline.after(LONG)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert admission.waiting == 1
        # Given the place and gone in the same moment.
        admission.leave()
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called
        assert (admission.taken, admission.waiting) == (0, 0)

    run(scene)


def test_the_sooner_of_two_deadlines_holds() -> None:
    deadline = RequestDeadline.after(LONG)
    assert deadline.sooner(None) is deadline
    assert deadline.sooner(99) is deadline
    assert deadline.sooner(2).seconds == 2
    assert 1.9 < deadline.sooner(2).left_s <= 2
    assert RequestDeadline.after(-1).left_s == 0
    assert stated_s(None, 30, 120) == 30
    assert stated_s("1500", 30, 120) == 1.5
    assert stated_s("9e9", 30, 120) == 120


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1,5"])
def test_a_deadline_that_is_none(text: str) -> None:
    with pytest.raises(RefusalError, match="expected milliseconds above 0, got"):
        stated_s(text, 30, 120)


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_keys_are_found_by_either_header(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"a secret of the clinic").hexdigest()
    keys = read_keys(keys_file(tmp_path, f"# comment\n\nclinic:{digest}\n  another-secret-key  \n"))
    assert keys.names == ["clinic", "line-4"]
    assert keys.owner({"authorization": "Bearer a secret of the clinic"}) == "clinic"
    assert keys.owner({"authorization": "bearer  another-secret-key"}) == "line-4"
    assert keys.owner({"x-api-key": "another-secret-key"}) == "line-4"
    # Knowing the file is not knowing the key.
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": digest}, {"authorization": "Basic another-secret-key"}):
        assert keys.owner(headers) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "expected at least one key"),
        ("# nothing\n", "expected at least one key"),
        ("hunter2\n", "expected 16 or more .*line 1 of"),
        ("long enough but of words\n", "expected 16 or more .*line 1 of"),
        (f"a:{'0' * 64}\na:{'1' * 64}\n", "got a repeated one in line 2 of"),
        (f"a:{'0' * 64}\nb:{'0' * 64}\n", "got a repeated one in line 2 of"),
    ],
)
def test_a_file_that_holds_no_keys(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault) as raised:
        read_keys(keys_file(tmp_path, text))
    assert "hunter2" not in str(raised.value)


def test_keys_that_others_can_read_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = keys_file(tmp_path, "0123456789abcdef\n")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_keys(path)
    assert "chmod 600" in caplog.text
    with pytest.raises(SettingsError, match=r"--keys: .*: No such file"):
        read_keys(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"triton": "http://127.0.0.1:8000"}, "HOST:PORT or unix:PATH"),
        ({"triton": "localhost"}, "HOST:PORT or unix:PATH"),
        ({"tls_cert": "cert.pem"}, "Give both"),
        ({"max_body_mib": 200}, "expected at least 600, 3 times --max-body-mib, got 512. Raise it"),
        ({"deadline_s": 500.0}, "--deadline-s: expected at most 120, the --max-deadline-s, got 500"),
        ({"deadline_s": -1.0}, "--deadline-s: expected a number greater than 0"),
    ],
)
def test_settings_that_can_not_be_used(options: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        settings_from(GatewaySettings, **options)


@pytest.mark.parametrize("triton", ["127.0.0.1:8001", "[::1]:8001", "triton.local:8001", "unix:/run/triton.sock:8001"])
def test_places_where_triton_can_be(triton: str) -> None:
    assert settings_from(GatewaySettings, triton=triton).triton == triton


def test_a_port_that_is_taken() -> None:
    with open_listener("127.0.0.1", 0, "--port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"--port: .* got {port} on 127.0.0.1: .*change --port"):
            open_listener("127.0.0.1", port, "--port")


def parsed(request: InferenceRequest) -> Any:
    return pb.ModelInferRequest.FromString(request.request.wire)


def body(*inputs: dict[str, Any], behind: bytes = b"", **rest: Any) -> tuple[bytes, str]:
    text = json.dumps({"inputs": list(inputs), **rest}).encode()
    return text + behind, str(len(text))


def test_tensors_behind_the_json_go_through_as_they_are() -> None:
    image = struct.pack("<I", 3) + b"\xff\xd8\xff"
    first = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 7}}
    second = {"name": "OTHER", "shape": [2], "datatype": "UINT8", "data": [[0], [255]]}
    third = {"name": "MORE", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}}
    sent, size = body(first, second, third, behind=image + b"z", id="mine", parameters={"timeout": 1500, "priority": 3})
    inference = request_from_body("ensemble", sent, size, "ours")
    request = parsed(inference)
    assert list(request.raw_input_contents) == [image, b"\x00\xff", b"z"]
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
        ("IMAGE", "BYTES", [1, 1]),
        ("OTHER", "UINT8", [2]),
        ("MORE", "UINT8", [1]),
    ]
    # Nothing that tells Triton how to queue.
    assert not request.parameters
    assert (request.id, request.model_name) == ("ours", "ensemble")
    assert (inference.request.id, inference.id, inference.timeout_s) == ("ours", "mine", 0.0015)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.text(max_size=5))
def test_a_request_is_on_the_wire_what_protobuf_would_make_of_it(images: list[bytes], request_id: str) -> None:
    built = image_request([memoryview(one) for one in images], request_id)
    expected = pb.ModelInferRequest(model_name="ensemble", id=request_id)
    expected.inputs.add(name="IMAGE", datatype="BYTES", shape=(len(images), 1))
    expected.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in images))
    assert pb.ModelInferRequest.FromString(built.wire) == expected


def test_text_becomes_its_bytes() -> None:
    sent, _ = body({"name": "IMAGE", "shape": [2, 1], "datatype": "BYTES", "data": [["é"], ["xyz"]]})
    (raw,) = parsed(request_from_body("ensemble", sent, None, "")).raw_input_contents
    assert bytes_from_raw(raw) == ["é".encode(), b"xyz"]


@pytest.mark.parametrize(
    ("data", "shape", "fault"),
    [
        ([256], [1], "expected whole numbers from 0 to 255"),
        ([-1], [1], "expected whole numbers"),
        ([1.5], [1], "expected whole numbers"),
        ([float("nan")], [1], "NaN is not a JSON number"),
        ([float("-inf")], [1], "-Infinity is not a JSON number"),
        ([1e300], [1], "expected whole numbers"),
        ([10**400], [1], "the data are not UINT8: int too large"),
        (["12"], [1], "the data are not UINT8: expected numbers"),
        ([True], [1], "the data are not UINT8: expected numbers"),
        ([None], [1], "the data are not UINT8: expected numbers"),
        ([1, 2], [3], r"expected 3 bytes for shape \[3\], got 2"),
        ([[1], [2, 3]], [3], "the data are not UINT8: expected lists of equal length"),
        ([[1], 2], [2], "the data are not UINT8: expected lists of equal length"),
        ([[[[[[[[[1]]]]]]]]], [1], "at most 8 dimensions"),
        ({"a": 1}, [1], "the data are not UINT8: expected a list"),
        (None, [1], "the data are not UINT8: expected a list"),
        (1, [1], "the data are not UINT8: expected a list"),
    ],
)
def test_data_that_are_no_pixels(data: Any, shape: list[int], fault: str) -> None:
    sent, _ = body({"name": "OTHER", "shape": shape, "datatype": "UINT8", "data": data})
    with pytest.raises(RefusalError, match=fault):
        request_from_body("ensemble_pixels", sent, None, "")


def test_a_timeout_may_have_any_number_of_digits_and_must_be_one() -> None:
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    for timeout, seconds in ((1, 1e-6), (10**400, 365 * 86400.0), (None, None)):
        sent, _ = body(one, parameters={"timeout": timeout})
        assert request_from_body("ensemble", sent, None, "").timeout_s == seconds
    for wrong in (0, -1, True, 0.5, "1", [1], {"a": 1}):
        sent, _ = body(one, parameters={"timeout": wrong})
        with pytest.raises(RefusalError, match="the parameter timeout: expected microseconds above 0, got"):
            request_from_body("ensemble", sent, None, "")


@pytest.mark.parametrize("wrong", [1, "true", None, []])
def test_whether_outputs_are_bytes_is_said_by_true_or_false(wrong: Any) -> None:
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    for rest in (
        {"parameters": {"binary_data_output": wrong}},
        {"outputs": [{"name": "LABEL", "parameters": {"binary_data": wrong}}]},
    ):
        sent, _ = body(one, **rest)
        with pytest.raises(RefusalError, match="expected true or false, got"):
            request_from_body("ensemble", sent, None, "")


def test_json_that_is_too_long_is_not_read() -> None:
    with pytest.raises(RefusalError, match="Send tensors as binary data") as refused:
        request_from_body("ensemble", b" " * (MAX_JSON_BYTES + 1), None, "")
    assert refused.value.status == 413


@given(st.binary(max_size=300), st.none() | st.text(max_size=8) | st.integers(-5, 400).map(str))
def test_any_bytes_are_a_request_or_refused(sent: bytes, size: str | None) -> None:
    with pytest.raises(RefusalError):
        request_from_body("ensemble", sent, size, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"name": st.text(max_size=5), "shape": st.lists(st.integers(-1, 2**40), max_size=9) | JSON},
        optional={"datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | JSON, "parameters": JSON, "data": JSON},
    ),
    JSON,
    st.binary(max_size=20),
)
def test_any_json_is_a_request_or_refused(tensor: dict[str, Any], parameters: Any, behind: bytes) -> None:
    sent, size = body(tensor, behind=behind, parameters=parameters)
    refusals, requests = [], []
    try:
        requests.append(parsed(request_from_body("ensemble", sent, size, "")))
    except RefusalError as refusal:
        refusals.append(refusal)
    assert len(refusals) + len(requests) == 1
    assert all(refusal.status == 400 and "\n" not in refusal.text for refusal in refusals)


def test_answers_are_text_or_bytes_as_wanted() -> None:
    response = pb.ModelInferResponse(model_name="ensemble", model_version="1")
    for name, datatype, raw in (
        ("LABEL", "BYTES", struct.pack("<I", 2) + b"CE"),
        ("REVIEW", "BOOL", b"\x01"),
        ("ENTROPY", "FP32", struct.pack("<f", 0.5)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        response.raw_output_contents.append(raw)
    one = {"name": "OTHER", "shape": [1], "datatype": "UINT8", "data": [1]}
    sent, _ = body(one, outputs=[{"name": "ENTROPY", "parameters": {"binary_data": True}}, {"name": "LABEL"}])
    inference = request_from_body("ensemble", sent, None, "")
    assert [wanted.name for wanted in parsed(inference).outputs] == ["ENTROPY", "LABEL"]
    answer, size = body_from_response(response, inference)
    assert size is not None
    assert answer[size:] == struct.pack("<f", 0.5)
    described = {output["name"]: output for output in json.loads(answer[:size])["outputs"]}
    assert described["LABEL"]["data"] == ["CE"]
    assert described["REVIEW"]["data"] == [True]
    assert described["ENTROPY"]["parameters"] == {"binary_data_size": 4}


@given(st.binary(max_size=40))
def test_bytes_are_counted_or_refused(raw: bytes) -> None:
    try:
        parts = bytes_from_raw(raw)
    except ValueError:
        return
    assert b"".join(struct.pack("<I", len(part)) + part for part in parts) == raw


def test_a_defect_is_an_answer_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
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

    run(scene)
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]
    assert "ZeroDivisionError: secret" in caplog.text


SCRIPT = """
import json, sys
from dataclasses import asdict
from plurum.serving.gateway import GatewaySettings, run_gateway
options = {"triton": "127.0.0.1:1", "port": 0, "metrics_port": 0} | json.loads(sys.argv[1])
run_gateway(GatewaySettings(**options), lambda urls: print(json.dumps(asdict(urls)), flush=True))
"""


@contextmanager
def alone(**options: object) -> Iterator[tuple[tuple[str, int], str]]:
    """Give place and metrics of a gateway that no Triton stands behind."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            yield ("127.0.0.1", int(urls["http"].rpartition(":")[2])), urls["metrics"]
        finally:
            process.kill()


def status_line(connection: socket.socket) -> str:
    connection.settimeout(10)
    return connection.recv(1 << 16).decode().split("\r\n")[0]


LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def test_one_connection_too_many_is_closed_with_a_word_and_others_stay() -> None:
    with alone(max_connections=2) as (place, metrics), ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_connection(place)) for _ in range(2))
        first.sendall(LIVE)
        assert status_line(first) == "HTTP/1.1 200 OK"
        third = stack.enter_context(socket.create_connection(place))
        assert status_line(third) == "HTTP/1.1 503 Service Unavailable"
        assert third.recv(1) == b""
        second.sendall(LIVE)
        assert status_line(second) == "HTTP/1.1 200 OK"
        assert metrics_at(metrics)['plurum_gateway_connections_refused_total{reason="crowded"}'] == 1


def test_all_bodies_together_have_a_limit() -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n"
    with alone(max_body_mib=1, max_buffered_mib=3) as (place, metrics), ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_connection(place)) for _ in range(2))
        first.sendall(head + bytes(700_000))
        deadline = time.monotonic() + 10
        while metrics_at(metrics).get("plurum_gateway_buffered_bytes{}", 0) < 700_000:
            assert time.monotonic() < deadline
        second.sendall(head + bytes(700_000))
        assert status_line(second) == "HTTP/1.1 503 Service Unavailable"
        first.close()
        while metrics_at(metrics)["plurum_gateway_buffered_bytes{}"]:
            assert time.monotonic() < deadline
        assert metrics_at(metrics)['plurum_gateway_refused_total{reason="gone"}'] == 1


def test_requests_that_do_not_wait_for_answers_are_not_queued_without_end() -> None:
    with alone() as (place, metrics), socket.create_connection(place) as connection:
        connection.settimeout(10)
        connection.sendall(LIVE * 10)
        answers = b""
        while answers.count(b"200 OK") < 10:
            answers += connection.recv(1 << 16)
        with pytest.raises(ConnectionError):
            connection.sendall(LIVE * 200_000)
        assert metrics_at(metrics)['plurum_gateway_connections_refused_total{reason="malformed"}'] == 1


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


def test_who_does_not_read_what_is_sent_is_cut_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        await asyncio.sleep(LONG)

    async def scene() -> None:
        metrics = GatewayMetrics()
        door = GatewayMiddleware(app, None, metrics, None, access_log=False)
        config = uvicorn.Config(door, log_config=None, lifespan="off")
        made = connection_class(GatewaySettings(receive_s=0.05), metrics, door)
        connection, transport = made(config, ServerState(), {}), FakeTransport()
        connection.connection_made(transport)
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
        # As a transport does; what waits to write goes on.
        connection.connection_lost(None)

    run(scene)


class ClosedTransport(FakeTransport):
    def resume_reading(self) -> None:
        # As uvloop's.
        if self.ends:
            raise RuntimeError("unable to perform operation; the handler is closed")


def test_who_leaves_with_a_second_request_on_its_way_leaves_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        while (await receive())["type"] != "http.disconnect":
            pass
        left.append(scope["path"])
        raise ClientDisconnect

    left: list[str] = []

    async def scene() -> None:
        metrics = GatewayMetrics()
        door = GatewayMiddleware(app, None, metrics, None, access_log=False)
        made = connection_class(GatewaySettings(), metrics, door)
        connection, transport = made(uvicorn.Config(door, log_config=None), ServerState(), {}), ClosedTransport()
        connection.connection_made(transport)
        connection.data_received(b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx" + LIVE)
        transport.abort()
        connection.connection_lost(None)
        await asyncio.sleep(0.01)
        assert b'refused_total{reason="gone"} 1.0' in generate_latest(metrics.registry)

    run(scene)
    assert left == ["/first"]
    assert caplog.text == ""


class Full:
    """What stands behind a door and has no place."""

    full = True

    def check_head(self, scope: Any, headers: Any) -> None:  # noqa: ARG002 (a protocol's names)
        if scope["path"] == "/predict":
            raise RefusalError(503, "busy", "no place is free")


def test_who_is_refused_by_the_head_is_answered_before_the_body_has_come() -> None:
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 (uvicorn counts them)
        called.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scene() -> None:
        metrics, behind = GatewayMetrics(), Full()
        door = GatewayMiddleware(app, None, metrics, behind, access_log=False)
        made = connection_class(GatewaySettings(), metrics, door)
        connection, transport = made(uvicorn.Config(door, log_config=None), ServerState(), {}), FakeTransport()
        connection.connection_made(transport)
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 6\r\n"
        connection.data_received(head + b"\r\nabc")
        answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nx-request-id: mine\r\n"
            b"content-type: application/json\r\ncontent-length: 29\r\n"
        )
        text = b'{"error": "no place is free"}'
        assert transport.written == answer + b"\r\n" + text
        # The rest of the body, and two more requests that did not wait.
        connection.data_received(b"def" + 2 * (head + b"\r\nabcdef"))
        assert transport.written == 3 * (answer + b"\r\n" + text)
        # Nothing is left that would have to be looked for.
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
        # What need not wait for a place goes through, and what comes behind it is refused after its answer.
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

    run(scene)


def test_line_ends_between_requests_do_not_keep_a_connection_open() -> None:
    with alone(receive_s=1.5) as (place, _), socket.create_connection(place) as connection:
        connection.sendall(LIVE)
        assert status_line(connection) == "HTTP/1.1 200 OK"
        connection.sendall(b"\r\n")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began < 5


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_the_page_names_what_there_is() -> None:
    metrics = GatewayMetrics()
    metrics.watch(Admission(1, 1), lambda: 0)
    there = generate_latest(metrics.registry).decode()
    names = {name.removesuffix("_total") for name in re.findall(r"`(plurum_gateway_\w+)", PAGE)}
    assert len(names) > 7
    assert all(name in there for name in names)
    fields = {f"--{name.replace('_', '-')}" for name in GatewaySettings.model_fields}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) - fields == {"--data-binary"}
    defaults = GatewaySettings()
    text = " ".join(PAGE.split())
    assert f"{defaults.receive_s:.0f} s for the whole request, {defaults.receive_s / 3:.0f} s for its head" in text
    assert f"its own probe every {defaults.question_s:.0f} s while no client sends requests" in text
    assert f"unresponsive Triton within {defaults.question_s + defaults.answer_s:.0f} s" in text
    assert f"as their deadline allows, at most {defaults.away_s:.0f} s" in text


def test_the_pages_way_to_make_a_key_makes_one(tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) if "openssl rand" in block]
    commands = [line for line in block.splitlines() if not line.startswith(("plurum", "curl"))]
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, check=True)
    keys = read_keys(tmp_path / "keys.txt")
    assert keys.owner({"x-api-key": (tmp_path / "clinic.key").read_text().strip()}) == "clinic"


def test_a_triton_that_is_still_loading_serves_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ENSEMBLE

    async def metadata(asked: Any, **_: Any) -> Any:
        if asked.name == missing:
            raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata())
        return pb.ModelMetadataResponse(name=asked.name)

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

    run(scene)
