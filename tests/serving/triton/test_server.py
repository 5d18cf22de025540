"""A real server: what it refuses, what it shows, and what is left of it."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from plurum.errors import MetadataError, RepositoryError, ServerError
from plurum.serving import Server, find_triton
from plurum.serving.installation import lay_out
from plurum.serving.triton.settings import claim_ports
from tests.serving.servers import FREE, changed_repository, listening, nothing_is_left, triton_of

pytestmark = pytest.mark.triton


def test_only_loopback_listens(served: Server) -> None:
    ports = {int(url.removesuffix("/metrics").rpartition(":")[2]) for url in vars(served.urls).values()}
    assert listening(ports) == dict.fromkeys(ports, "0100007F")


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


@pytest.mark.parametrize("lost", ["http", "metrics"])
def test_a_server_that_loses_a_port_to_another_server_starts_on_others(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    with Server(repository, FREE) as other:
        taken, claims = claim_ports(FREE), iter([True])
        taken = dataclasses.replace(taken, **{lost: urlsplit(getattr(other.urls, lost)).port})
        monkeypatch.setattr(
            "plurum.serving.triton.server.claim_ports",
            lambda asked: taken if next(claims, False) else claim_ports(asked),
        )
        with Server(repository, FREE) as server:
            assert getattr(server.urls, lost) != getattr(other.urls, lost)
            server.check()
    assert "already in use" in caplog.text
    assert nothing_is_left(server)


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
    # Triton sometimes crashes after it has refused the model.
    assert re.search(r"did not start \(exit code -?\d+\): model 'resnet10t' can't be loaded", str(raised.value))
    assert f"Load model from {graph} failed:Protobuf parsing failed. Its complete log is in" in str(raised.value)
    assert nothing_is_left(server)
    assert "Protobuf parsing failed" in server.log.path.read_text()
    server.log.path.unlink()


def test_ready_means_that_an_inference_has_completed(repository: Path, tmp_path: Path) -> None:
    code = "\n\ndef fail(*_):\n    raise ValueError('out of order')\n\nTritonPythonModel.execute = fail\n"
    server = Server(changed_repository(repository, tmp_path, code), FREE)
    with pytest.raises(ServerError, match=r"failed a first inference .*out of order"), server:
        pass
    assert nothing_is_left(server)
    server.log.path.unlink()


def test_a_start_that_exceeds_its_timeout_fails(repository: Path) -> None:
    server = Server(repository, FREE.model_copy(update={"start_timeout_s": 0.01}))
    with pytest.raises(ServerError, match=r"was not ready after 0\.01 s"), server:
        pass
    assert nothing_is_left(server)
    server.log.path.unlink()


def test_errors_before_the_start_leave_nothing(repository: Path, tmp_path: Path) -> None:
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
