"""A request that ends Triton, among others: how often it is sent, and the responses to the others."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from plurum.benchmarks.tools.servers import serve_behind_gateway
from plurum.serving.gateway.quarantine import Quarantine
from plurum.serving.triton.metrics import metrics_at
from tests.serving.gateway.gateways import run_scene
from tests.serving.servers import changed_repository

# Appended to the voter: a request called so ends the server, as a defect in a decoder could, or hangs it for as long as
# `plurum serve` waits before it does.
_POISON = """

import os, signal, time
_execute = TritonPythonModel.execute

def poisonous(self, requests):
    time.sleep(0.05 * len(requests))
    names = {request.request_id() for request in requests}
    if names & {"poison", "hang"}:
        with open("SEEN", "a") as seen:
            seen.write("x")
        time.sleep(3 if "hang" in names else 0)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(5)
    return _execute(self, requests)

TritonPythonModel.execute = poisonous
"""


def predict(url: str, image: bytes, **headers: str) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=90)
    connection.request("POST", "/predict", image, {key.replace("_", "-"): value for key, value in headers.items()})
    reply = connection.getresponse()
    found = reply.status, json.loads(reply.read())
    connection.close()
    return found


@pytest.fixture
def poisonous(repository: Path, tmp_path: Path) -> Path:
    """A repository whose voter fails as `_POISON` says."""
    copy = changed_repository(repository, tmp_path, _POISON.replace("SEEN", str(tmp_path / "seen")))
    # It tells the files apart from those that were exported.
    (copy / "export.json").unlink()
    return copy


@pytest.fixture
def image() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 200)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("before", [0, 1])
def test_request_that_hangs_triton_is_sent_once(poisonous: Path, image: bytes, before: int) -> None:
    with serve_behind_gateway(poisonous, "--deadline-s", "60") as stack:
        expected = [predict(stack.gateway, image) for _ in range(before)]
        status, answer = predict(stack.gateway, image, X_Request_ID="hang")
        assert (status, answer["error"].partition(";")[0]) == (504, "Triton received the request and does not respond")
        after = predict(stack.gateway, image)
        assert after[0] == 200
        assert expected in ([], [after])
        assert metrics_at(stack.metrics)['plurum_gateway_refused_total{reason="lost"}'] == 1
    assert (poisonous.parent / "seen").read_text() == "x"


@pytest.mark.slow
@pytest.mark.triton
def test_request_that_ends_triton_twice_is_refused_and_costs_others_nothing(poisonous: Path, image: bytes) -> None:
    with serve_behind_gateway(poisonous, "--deadline-s", "60") as stack, ThreadPoolExecutor(8) as pool:
        expected = predict(stack.gateway, image)
        assert expected[0] == 200
        stop = False

        def keep_sending(_: int) -> list[tuple[int, Any]]:
            answers = []
            while not stop:
                answers.append(predict(stack.gateway, image))
            return answers

        others = [pool.submit(keep_sending, number) for number in range(6)]
        time.sleep(1)
        status, answer = predict(stack.gateway, image, X_Request_ID="poison")
        time.sleep(2)
        stop = True
        answers = [one for future in others for one in future.result()]
        assert (status, answer) == (
            422,
            {"error": "Triton failed twice while it processed the request; it is not retried"},
        )
        assert len(answers) > 20
        assert all(one == expected for one in answers)
        counts = metrics_at(stack.metrics)
        assert counts["plurum_gateway_triton_returns_total{}"] == 2
        assert counts['plurum_gateway_refused_total{reason="suspect"}'] == 1
    assert (poisonous.parent / "seen").read_text() == "xx"


def test_longest_running_and_bulk_requests_come_last() -> None:
    async def scene() -> None:
        quarantine, order = Quarantine(), []

        async def visit(name: str, in_flight_s: float, *, bulk: bool = False) -> None:
            await quarantine.enter(in_flight_s, bulk=bulk)
            order.append(name)
            assert len(order) == len(left) + 1
            await asyncio.sleep(0)
            left.append(name)
            quarantine.leave()

        left: list[str] = []
        await asyncio.gather(
            visit("hung", 5),
            visit("bulk", 0.1, bulk=True),
            visit("young", 0.1),
            visit("old", 1),
            visit("late bulk", 2, bulk=True),
        )
        assert order == left == ["young", "old", "hung", "bulk", "late bulk"]
        await visit("another", 0)

    run_scene(scene)
