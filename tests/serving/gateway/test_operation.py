"""A gateway in operation: limits, deadlines, keys, overload, and a Triton that stops responding."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from plurum.serving import Server, ServerSettings
from tests.images.image_files import encoded, gradient
from tests.serving.gateway.gateways import Gateway, Reply, form, gateway, wait_until_ready
from tests.serving.servers import triton_of
from tests.serving.voter_counts import wait_for_counts
from tests.serving.waiting import wait_until

pytestmark = pytest.mark.triton


KEY, OTHER = "correct-horse-battery-staple", "0123456789abcdef0123456789abcdef"


def test_slow_senders_are_disconnected(small: Gateway) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        # Nothing, half a head, half a body.
        backs = list(pool.map(small.raw, [b"", head, head + b"\r\nhalf a body"]))
        assert 0.9 < time.monotonic() - began < 8
    assert [back.split(b"\r\n")[0] for back in backs] == [b"HTTP/1.1 408 Request Timeout"] * 3
    assert small.count('connections_refused_total{reason="slow"}') >= 3


def test_late_response_is_discarded(small: Gateway, images: list[bytes]) -> None:
    before = small.count("thrown_away_total{}")
    late = small.predict(images[0], X_Deadline_Ms="0.2")
    assert late.status == 504
    assert "deadline of 0 ms" in late.json["error"]
    tensor = {"name": "PIXELS", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * 3072}
    body = {"inputs": [tensor], "parameters": {"timeout": 200}}
    assert small.send("POST", "/v2/models/ensemble_pixels/infer", json.dumps(body)).status == 504
    assert small.count("thrown_away_total{}") == before + 2
    # What is late still has its place, until Triton has answered it.
    wait_until(lambda: not small.count("in_flight{}"))
    assert small.predict(images[0], X_Deadline_Ms="20000").status == 200


def test_request_id_is_kept_unless_it_is_the_probes(small: Gateway, served: Server, images: list[bytes]) -> None:
    assert small.predict(images[0], X_Request_ID="visit-7").headers["x-request-id"] == "visit-7"

    def predictions() -> float:
        samples = wait_for_counts(served.urls.metrics)
        return sum(value for name, value in samples.items() if name.startswith("plurum_predictions_total"))

    before = predictions()
    for name in ("plurum-probe", "two words", "x" * 65):
        reply = small.predict(images[0], X_Request_ID=name)
        assert len(reply.headers["x-request-id"]) == 16
    assert predictions() == before + 3


def test_requests_are_counted(small: Gateway, images: list[bytes]) -> None:
    samples = ('requests_total{key="",route="predict",status="200"}', 'refused_total{reason="malformed"}')
    before = [small.count(sample) for sample in samples]
    small.predict(images[0])
    small.predict(b"junk")
    body, kind = form(("files", "good", images[0]), ("files", "bad", b"junk"))
    small.send("POST", "/predict", body, Content_Type=kind)
    assert [small.count(sample) for sample in samples] == [before[0] + 2, before[1] + 2]
    assert small.count("ready{}") == 1
    assert small.count("buffered_bytes{}") == 0
    assert small.count('request_seconds_count{route="predict"}') > 0


def test_keys_tls_and_log(served: Server, images: list[bytes], certificate: tuple[Path, Path], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# permitted clients\nclinic:{hashlib.sha256(KEY.encode()).hexdigest()}\n\n{OTHER}\n")
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


def test_overload_is_refused_and_a_signal_completes_the_rest(served: Server) -> None:
    # Large enough that a queue of them lasts until it is seen.
    image = encoded(Image.fromarray(gradient(1500, 1500)), "JPEG")
    with gateway(served.urls.grpc, "--max-in-flight", "1", "--max-waiting", "3") as one:
        wait_until_ready(one)
        body, kind = form(*[("files", str(at), image) for at in range(8)])

        def send(_: int) -> tuple[Reply, float]:
            began = time.monotonic()
            return one.send("POST", "/predict", body, Content_Type=kind), time.monotonic() - began

        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(send, range(24)))
            statuses = {reply.status for reply, _ in replies}
            assert statuses == {200, 503}
            for reply, took_s in replies:
                if reply.status == 503:
                    assert reply.headers["retry-after"] == "1"
                    assert "are waiting" in reply.json["error"]
                    assert took_s < 2
            last = [pool.submit(send, at) for at in range(4)]
            wait_until(lambda: one.count("waiting{}") >= 2)
            one.process.send_signal(signal.SIGTERM)
            assert {future.result()[0].status for future in last} <= {200, 503}
            assert [future.result()[0].status for future in last].count(200) >= 3
        assert one.process.wait(20) == 0


def test_disconnecting_clients_do_not_affect_others(small: Gateway, images: list[bytes]) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(images[0])}\r\n\r\n".encode()
    for _ in range(30):
        with socket.create_connection(small.address) as connection:
            connection.sendall(head + images[0])
    with ThreadPoolExecutor(4) as pool:
        assert {reply.status for reply in pool.map(small.predict, images)} == {200}


def test_restart_of_triton_costs_no_errors_and_exited_voter_is_detected(repository: Path, images: list[bytes]) -> None:
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as first:
        port = int(first.urls.grpc.rpartition(":")[2])
        with gateway(first.urls.grpc) as one, ThreadPoolExecutor(4) as pool:
            wait_until_ready(one)
            end = time.monotonic() + 30
            stop = False

            def keep_sending(_: int) -> list[int]:
                statuses = []
                while not stop and time.monotonic() < end:
                    statuses.append(one.predict(images[0]).status)
                return statuses

            senders = [pool.submit(keep_sending, at) for at in range(4)]
            time.sleep(0.3)
            os.kill(triton_of(first), signal.SIGKILL)
            time.sleep(0.7)
            assert one.send("GET", "/v2/health/ready").status == 503
            with Server(repository, ServerSettings(http_port=0, grpc_port=port, metrics_port=0)) as second:
                wait_until_ready(one)
                time.sleep(0.5)
                stop = True
                statuses = [status for future in senders for status in future.result()]
                check_that_an_exited_voter_is_detected(second, one, images[0])
            assert len(statuses) > 20
            assert set(statuses) == {200}
            assert one.count("triton_returns_total{}") == 1
            assert one.count("asked_again_total{}") >= 4
    first.log.path.unlink(missing_ok=True)


def check_that_an_exited_voter_is_detected(server: Server, one: Gateway, image: bytes) -> None:
    os.kill(voter_of(server), signal.SIGKILL)
    wait_until(lambda: one.send("GET", "/v2/health/ready").status != 200, 6)
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


def test_without_triton_requests_are_refused(images: list[bytes]) -> None:
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
