from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from plurum.client import EnsembleClient
from plurum.client.connection.addresses import WireProtocol, address_from_url
from plurum.errors import ServerError, SettingsError
from tests.client.stub_server import StubResponse, http_server


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A port where something else than Triton answers each who comes; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                held.append(peer)
                answer(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Closing alone does not wake a thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in held:
                peer.close()


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        (None, None, ("grpc", "127.0.0.1:8001")),
        (None, "grpc", ("grpc", "127.0.0.1:8001")),
        (None, "http", ("http", "127.0.0.1:8000")),
        ("localhost:9000", None, ("grpc", "localhost:9000")),
        ("10.0.0.7:9000", "http", ("http", "10.0.0.7:9000")),
        ("triton", "http", ("http", "triton:8000")),
        ("http://127.0.0.1:9000", None, ("http", "127.0.0.1:9000")),
        ("http://127.0.0.1:9000/", "http", ("http", "127.0.0.1:9000")),
        ("grpc://127.0.0.1", None, ("grpc", "127.0.0.1:8001")),
        ("[::1]:9000", None, ("grpc", "[::1]:9000")),
        ("http://[::1]", None, ("http", "[::1]:8000")),
        ("https://gateway.example", None, ("http", "gateway.example:443")),
        ("https://127.0.0.1:8080", "http", ("http", "127.0.0.1:8080")),
        ("grpcs://triton", "grpc", ("grpc", "triton:8001")),
    ],
)
def test_valid_urls(url: str | None, protocol: WireProtocol | None, expected: tuple[str, str]) -> None:
    place = address_from_url(url, protocol)
    assert (place.protocol, place.address, place.secure) == (*expected, "s://" in str(url))


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("https://127.0.0.1:8000", "grpc"),
        ("ftp://127.0.0.1", None),
        ("http://127.0.0.1:8000", "grpc"),
        ("grpc://127.0.0.1:8001", "http"),
        ("127.0.0.1:notaport", None),
        ("127.0.0.1:99999", None),
        ("http://", None),
        (":8001", None),
        ("127.0.0.1:8000/base", "http"),
        ("user:secret@127.0.0.1:8000", "http"),
        ("127.0.0.1:8000", "carrier pigeon"),
    ],
)
def test_invalid_urls_are_refused(url: str, protocol: WireProtocol | None) -> None:
    with pytest.raises(SettingsError):
        address_from_url(url, protocol)


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"concurrency": 0}])
def test_invalid_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        EnsembleClient(**options)  # type: ignore[arg-type]


def test_unavailable_server_gives_one_line(protocol: WireProtocol, closed_port: str) -> None:
    name = {"grpc": "gRPC", "http": "HTTP"}[protocol]
    with EnsembleClient(closed_port, protocol) as client, pytest.raises(ServerError) as caught:
        client.predict([b"image"])
    assert str(caught.value) == (
        f"no {name} server responds at {closed_port} (Connection refused). "
        "Start one with plurum serve REPO, or give another address with --url."
    )


def test_proxy_of_the_environment_is_not_used(
    protocol: WireProtocol, closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy for the web would be connections for 127.0.0.1, too, and would look for the server on its own machine."""
    connections: list[socket.socket] = []
    with listening(connections.append) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://{proxy}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with EnsembleClient(closed_port, protocol) as client, pytest.raises(ServerError, match="refused"):
            client.predict([b"image"])
    assert connections == []


def test_server_without_http_is_recognised() -> None:
    def greet(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"220 mail.example.org ready\r\n")
        peer.shutdown(socket.SHUT_WR)

    with (
        listening(greet) as address,
        EnsembleClient(address, "http") as client,
        pytest.raises(ServerError, match="does not speak HTTP"),
    ):
        client.predict([b"image"])


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>Welcome</html>", "is not a Triton server: its response is not JSON"),
        (200, b'{"hello": 1}', "is not a Triton server"),
        (200, b"[]", "is not a Triton server"),
        (200, b'{"outputs": []}', "model 'ensemble' at .* was not exported by Plurum"),
        (200, b'{"outputs": [{"name": "MEMBER_PROBABILITIES"}]}', "was not exported by Plurum"),
        (404, b"<html>Nothing here</html>", "unknown model 'ensemble'"),
        (500, b"", "does not describe 'ensemble': the server gave no reason"),
    ],
)
def test_other_web_servers_are_recognised(status: int, body: bytes, message: str) -> None:
    with (
        http_server(lambda _: StubResponse(status, body)) as url,
        EnsembleClient(url) as client,
        pytest.raises(ServerError, match=message),
    ):
        client.predict([b"image"])
