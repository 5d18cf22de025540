"""A real server: what it refuses, what it shows, and what is left of it."""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families

from plurum.errors import MetadataError, RepositoryError, ServerError
from plurum.serving import Server, ServerSettings, find_triton
from plurum.serving.installation import lay_out
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.processes import MARK

pytestmark = pytest.mark.triton

FREE = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)


def nothing_is_left(server: Server) -> bool:
    places = [*SHARED_MEMORY.glob(f"{server.name}*"), *Path(server.log.path).parent.glob(f"{server.name}*")]
    return not server.processes() and not [path for path in places if path != server.log.path]


def triton_of(server: Server) -> int:
    """Return the id of the server's main process."""
    (triton,) = (one.pid for one in psutil.Process().children() if one.environ().get(MARK) == server.name)
    return triton


def test_only_loopback_listens(served: Server) -> None:
    ports = {int(url.removesuffix("/metrics").rpartition(":")[2]) for url in vars(served.urls).values()}
    listening = [
        line.split()[1].split(":")
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    addresses = {int(port, 16): address for address, port in listening if int(port, 16) in ports}
    # gRPC listens on the same address mapped into IPv6.
    assert {port: address.removeprefix("0000000000000000FFFF0000") for port, address in addresses.items()} == (
        dict.fromkeys(ports, "0100007F")
    )


def test_a_server_on_path_is_used_with_what_it_brings(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "installation"
    own.mkdir()
    triton = find_triton()
    if triton.wheel is None:
        pytest.skip("there is one on PATH already, and the other tests use it")
    arguments, environment = lay_out(triton, own)
    variables = " ".join(f"{name}={shlex.quote(environment[name])}" for name in ("LD_LIBRARY_PATH", "PATH"))
    script = tmp_path / "bin" / "tritonserver"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n{variables} exec {triton.binary} "$@" {arguments[0]}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    with Server(repository, FREE) as server:
        assert (tmp_path / "started").exists()
    assert nothing_is_left(server)


def test_a_triton_that_crashes_while_it_starts_is_started_once_more(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "tritonserver"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/started\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    with pytest.raises(ServerError, match=r"did not start \(exit code -11\)"), Server(repository, FREE):
        pass
    assert (tmp_path / "started").read_text().split() == ["x", "x", "x"]
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/started\nexit 1\n")
    with pytest.raises(ServerError, match=r"did not start \(exit code 1\)"), Server(repository, FREE):
        pass
    assert (tmp_path / "started").read_text().split() == ["x"] * 4


def test_requests_in_flight_go_all_the_way_and_nothing_is_left(slow: Path) -> None:
    answers: queue.Queue[tuple[float, Any]] = queue.Queue()
    with Server(slow, FREE.model_copy(update={"exit_timeout_s": 30})) as server:
        client = tritonclient.grpc.InferenceServerClient(server.urls.grpc)
        tensor = tritonclient.grpc.InferInput("PIXELS", [8, 32, 32, 3], "UINT8")
        tensor.set_data_from_numpy(np.zeros((8, 32, 32, 3), np.uint8))
        for _ in range(150):
            client.async_infer(
                "ensemble_pixels", [tensor], lambda result, error: answers.put((time.monotonic(), error or result))
            )
        time.sleep(0.3)
        end = time.monotonic()
    client.close()
    assert answers.qsize() == 150
    outcomes = [answers.get() for _ in range(150)]
    assert len([when for when, _ in outcomes if when > end]) > 20
    assert [str(answer) for _, answer in outcomes if isinstance(answer, Exception)] == []
    assert nothing_is_left(server)
    assert not server.log.path.exists()


def test_a_server_that_dies_is_noticed_and_cleared_away(repository: Path) -> None:
    with Server(repository, FREE) as server:
        server.check()
        # Its models' processes outlive it.
        os.kill(triton_of(server), signal.SIGKILL)
        time.sleep(0.5)
        with pytest.raises(ServerError, match=rf"exited unexpectedly \(exit code -9\).*{server.log.path}"):
            server.check()
    assert nothing_is_left(server)
    assert server.log.path.is_file()
    server.log.path.unlink()


def test_a_broken_graph_is_named_with_the_reason(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository, broken)
    graph = broken / "resnet10t" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:5000])
    server = Server(broken, FREE)
    with pytest.raises(ServerError) as raised, server:
        pass
    assert "did not start (exit code 1): model 'resnet10t' can't be loaded" in str(raised.value)
    assert f"Load model from {graph} failed:Protobuf parsing failed. Its complete log is in" in str(raised.value)
    assert nothing_is_left(server)
    assert "Protobuf parsing failed" in server.log.path.read_text()
    server.log.path.unlink()


def test_ready_means_answered(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository, broken)
    with (broken / "voter" / "1" / "model.py").open("a") as file:
        file.write("\n\ndef fail(*_):\n    raise ValueError('out of order')\n\nTritonPythonModel.execute = fail\n")
    server = Server(broken, FREE)
    with pytest.raises(ServerError, match=r"failed a first inference .*out of order"), server:
        pass
    assert nothing_is_left(server)
    server.log.path.unlink()


def test_a_start_that_takes_too_long(repository: Path) -> None:
    server = Server(repository, FREE.model_copy(update={"start_timeout_s": 0.01}))
    with pytest.raises(ServerError, match=r"was not ready after 0\.01 s"), server:
        pass
    assert nothing_is_left(server)
    server.log.path.unlink()


def test_what_is_wrong_before_the_start_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = Server(repository, FREE.model_copy(update={"grpc_port": port}))
        with pytest.raises(ServerError, match="change --grpc-port"):
            one.start()
    other = Server(tmp_path, FREE)
    with pytest.raises(RepositoryError, match="is not a model repository"):
        other.start()
    half = tmp_path / "half"
    shutil.copytree(repository, half)
    (half / "ensemble.json").write_text("{}")
    third = Server(half, FREE)
    with pytest.raises(MetadataError, match=r"ensemble\.json is not valid ensemble metadata"):
        third.start()
    assert nothing_is_left(one)
    assert nothing_is_left(other)
    assert nothing_is_left(third)
    with pytest.raises(ServerError, match="was not started"):
        _ = other.urls


def test_latency_summaries_have_quantiles(served: Server) -> None:
    import urllib.request

    with urllib.request.urlopen(served.urls.metrics, timeout=10) as page:
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    family = families["nv_inference_request_summary_us"]
    assert family.type == "summary"
    assert {sample.labels.get("quantile") for sample in family.samples} >= {"0.5", "0.95", "0.99"}
    assert {sample.labels["model"] for sample in family.samples} >= {"resnet10t", "voter", "ensemble_pixels"}
