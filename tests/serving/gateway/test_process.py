"""A gateway as a process: handshakes, signals, another user, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving.gateway.gateways import LIVE, lonely_gateway, response_from

# A ClientHello that is said to be longer than what comes.
HELLO = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb\x03\x03" + bytes(9000)


def test_handshakes_count_as_connections_and_time_out(tls: dict[str, Any]) -> None:
    with lonely_gateway(max_connections=20, receive_s=6, **tls) as one, contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(one.address, timeout=10)) for _ in range(20)]
        for connection in held[::2]:
            connection.sendall(HELLO)
        began = time.monotonic()
        while one.refused_connections("crowded") == 0:
            assert time.monotonic() - began < 5
            with contextlib.suppress(OSError), socket.create_connection(one.address) as late:
                late.sendall(b"x")
            time.sleep(0.1)
        for connection in held:
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 16):
                    pass
        assert time.monotonic() - began < 8
        assert one.exchange(LIVE).startswith(b"HTTP/1.1 200")
        # What is no TLS is closed at once.
        before = one.refused_connections("malformed")
        with socket.create_connection(one.address, timeout=10) as plain:
            plain.sendall(LIVE)
            response_from(plain)
        assert one.refused_connections("malformed") == before + 1
        assert one.refused_connections("slow") == 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("secure", [False, True])
def test_signal_lets_accepted_requests_finish(tls: dict[str, Any], number: signal.Signals, *, secure: bool) -> None:
    with lonely_gateway(**tls if secure else {}) as one, contextlib.closing(one.connection()) as connection:
        # Waits for a Triton that never comes.
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\nx-deadline-ms: 1500\r\ncontent-length: 1\r\n\r\nx")
        time.sleep(0.3)
        one.process.send_signal(number)
        assert response_from(connection).startswith(b"HTTP/1.1 503")
        assert one.process.wait(10) == 0


def test_hangup_is_ignored_under_nohup() -> None:
    with lonely_gateway("nohup") as one:
        one.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert one.exchange(LIVE).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_runs_as_nobody_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: dict[str, Any]
) -> None:
    for name, variable in (("home", "HOME"), ("tmp", "TMPDIR"), ("cache", "XDG_CACHE_HOME")):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 65534, 65534)
        monkeypatch.setenv(variable, str(tmp_path / name))
    keys, key = tmp_path / "keys", Path(tls["tls_key"])
    keys.write_text("a-key-of-some-length\n")
    keys.chmod(0o600)
    for file in (keys, key):
        os.chown(file, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents, key.parent, *key.parent.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with lonely_gateway(*user, keys=str(keys), **tls) as one:
        assert Path(f"/proc/{one.process.pid}").stat().st_uid == 65534
        assert one.exchange(LIVE).startswith(b"HTTP/1.1 200")
        assert one.exchange(LIVE.replace(b"/health/live", b"")).startswith(b"HTTP/1.1 401")
        one.process.terminate()
        assert one.process.wait(10) == 0
    assert [path for name in ("home", "tmp", "cache") for path in (tmp_path / name).rglob("*")] == []
