"""Management: `plurum serve` loads and unloads models, and no client can, whatever it sends."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from plurum.client import EnsembleClient
from plurum.conventions import MANAGERS
from plurum.errors import ServerError
from plurum.serving import Server, Supervisor
from plurum.serving.triton.leftovers import SHARED_MEMORY
from plurum.serving.triton.settings import Ports, server_arguments
from tests.serving.servers import FREE

pytestmark = pytest.mark.triton

PATHS = [
    "v2/repository/index",
    "v2/repository/models/voter/load",
    "v2/repository/models/voter/unload",
    "v2/repository/models/evil/load",
    "v2/systemsharedmemory/status",
    "v2/systemsharedmemory/region/x/register",
    "v2/systemsharedmemory/unregister",
    "v2/cudasharedmemory/status",
    "v2/cudasharedmemory/region/x/register",
    "v2/cudasharedmemory/unregister",
    "v2/trace/setting",
    "v2/models/voter/trace/setting",
    "v2/logging",
]
# What the lock of a server is, as anybody can read it in Triton's arguments.
LOCK = next(
    argument.partition(":")[2]
    for argument in server_arguments(FREE, Ports(1, 2, 3), "models", "name")
    if argument.startswith("--http-restricted-api")
)
NAME, _, VALUE = LOCK.partition("=")
# Spellings in which a careless parser could find the header's name.
HEADERS = [
    f"{NAME}: {VALUE}",
    f"{NAME}:{VALUE}",
    f"{NAME} : {VALUE}",
    NAME.replace("\n", "\r\n") + f": {VALUE}",
    NAME.replace("\n", "\r\n ") + f": {VALUE}",
    NAME.replace("\n", "\r\n\t") + f": {VALUE}",
    NAME.replace("\n", "\r") + f": {VALUE}",
    NAME.replace("\n", "\\n") + f": {VALUE}",
    NAME.replace("\n", "%0A") + f": {VALUE}",
    NAME.replace("\n", "%0a").replace(" ", "%20") + f": {VALUE}",
    NAME.replace("\n", " ") + f": {VALUE}",
    NAME.replace("\n", "\0") + f": {VALUE}",
    NAME.replace("\n", "\x0b") + f": {VALUE}",
    NAME.replace("\n", "\x85") + f": {VALUE}",
    NAME.lower() + f": {VALUE}",
    f'"{NAME}": {VALUE}',
    f"=?utf-8?q?{NAME.replace(chr(10), '=0A').replace(' ', '_')}?=: {VALUE}",
    f"admin-key: {VALUE}",
    f"x y: {VALUE}",
]
CALLS: dict[str, Callable[[object], object]] = {
    "share": lambda client: client.register_system_shared_memory("region", "/region", 64),  # type: ignore[attr-defined]
    "shared": lambda client: client.get_system_shared_memory_status(),  # type: ignore[attr-defined]
    "load": lambda client: client.load_model("voter"),  # type: ignore[attr-defined]
    "upload": lambda client: client.load_model("evil", config="{}", files={"file:1/model.py": b"x"}),  # type: ignore[attr-defined]
    "unload": lambda client: client.unload_model("voter"),  # type: ignore[attr-defined]
    "index": lambda client: client.get_model_repository_index(),  # type: ignore[attr-defined]
    "trace": lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),  # type: ignore[attr-defined]
    "log": lambda client: client.update_log_settings({"log_verbose_level": 1}),  # type: ignore[attr-defined]
}
# Of gRPC's service, each with an empty message; those of them that change something do so with no field set, too.
METHODS = (
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)


def exchange(address: str, sent: bytes) -> bytes:
    """Send bytes, and return all that comes back until the server closes the connection or is silent."""
    host, _, port = address.rpartition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=2) as connection, contextlib.suppress(OSError):
        connection.sendall(sent)
        while part := connection.recv(65536):
            found += part
            # Enough of an answer: a status line, or a stream's trailers.
            if b"\r\n\r\n" in found or b"grpc-status" in found:
                break
    return found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_clients_are_refused(served: Server, call: Callable[[object], object]) -> None:
    grpc = tritonclient.grpc.InferenceServerClient(served.urls.grpc)
    with grpc, pytest.raises(InferenceServerException, match="protocol is restricted"):
        call(grpc)
    by_http = tritonclient.http.InferenceServerClient(served.urls.http.removeprefix("http://"))
    with by_http, pytest.raises(InferenceServerException, match="restricted"):
        call(by_http)


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_the_header_passes_over_http(served: Server, path: str) -> None:
    address = urlsplit(served.urls.http).netloc
    for header in ["x: y", *HEADERS]:
        for method in ("GET", "POST", "PUT", "post"):
            head = f"{method} /{path} HTTP/1.1\r\nHost: x\r\n{header}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
            answer = exchange(address, head.encode("latin-1") + b"{}")
            status = answer.split(b" ")[1:2]
            # Refused for the header, for the method, or as no HTTP at all.
            assert status in ([b"403"], [b"405"], [b"400"], []), (path, method, header, answer[:200])
    served.check()


def hpack(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as literals without indexing (RFC 7541, section 6.2.2), whatever their bytes are."""
    return b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_request(method: str, extra: list[tuple[bytes, bytes]]) -> bytes:
    """Return what a client sends to call a method of Triton's service with an empty message."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", f"/inference.GRPCInferenceService/{method}".encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    ]
    settings, headers, data = frame(4, 0, 0), frame(1, 0x4, 1, hpack(fields)), frame(0, 0x1, 1, b"\0\0\0\0\0")
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers + data


@pytest.mark.parametrize("method", METHODS)
def test_no_spelling_of_the_header_passes_over_grpc(served: Server, method: str) -> None:
    name, value = NAME.encode(), VALUE.encode()
    spellings = [
        name,
        name.lower(),
        name.replace(b"\n", b" "),
        name.replace(b"\n", b"\0"),
        name.replace(b" ", b"-").replace(b"\n", b"-").lower(),
        name + b"-bin",
        b"admin-key",
        b"x y",
    ]
    extras = [[], *([(prefix + one, value)] for one in spellings for prefix in (b"", b"triton-grpc-protocol-"))]
    for extra in extras:
        answer = exchange(served.urls.grpc, grpc_request(method, extra))
        # Triton refuses, or gRPC does, or resets the connection: no message comes, nor the status 0.
        assert not [kind for kind, _ in frames(answer) if kind == 0], (method, extra, answer[:300])
        assert b"grpc-status\x010" not in answer, (method, extra, answer[:300])
    assert b"protocol is restricted" in exchange(served.urls.grpc, grpc_request(method, []))
    # The same way of asking is answered where nothing is shut.
    answer = exchange(served.urls.grpc, grpc_request("ServerLive", []))
    assert b"grpc-status" in answer
    assert [payload for kind, payload in frames(answer) if kind == 0] == [b"\0\0\0\0\x02\x08\x01"]


def frames(answer: bytes) -> list[tuple[int, bytes]]:
    """Return the kind and the payload of each whole HTTP/2 frame."""
    found = []
    while len(answer) >= 9:
        size = int.from_bytes(answer[:3], "big")
        found.append((answer[3], answer[9 : 9 + size]))
        answer = answer[9 + size :]
    return found


def test_the_manager_models_serve_no_inference(served: Server) -> None:
    client = tritonclient.grpc.InferenceServerClient(served.urls.grpc)
    tensor = tritonclient.grpc.InferInput("NONE", [1], "BOOL")
    tensor.set_data_from_numpy(np.zeros(1, bool))
    with client:
        for name in MANAGERS:
            with pytest.raises(InferenceServerException, match="this model serves no inference"):
                client.infer(name, [tensor])


def test_errors_of_triton_are_raised(repository: Path) -> None:
    # A server of its own: a load that fails may end the manager model, whose reason is then in Triton's log alone.
    with Server(repository, FREE) as server, pytest.raises(ServerError, match="Triton could not load nothing: "):
        server._admin.load("nothing", 5)


def managers_of(server: Server) -> list[int]:
    return [process for process, model in server.stubs().items() if model in MANAGERS]


def test_a_manager_that_dies_is_loaded_again_by_the_other(repository: Path) -> None:
    with Supervisor(repository, FREE) as supervisor:
        server = supervisor._server
        for _ in range(2):
            lost = managers_of(server)[0]
            os.kill(lost, signal.SIGKILL)
            time.sleep(0.3)
            fault = supervisor._find_exited()
            assert fault is not None
            supervisor._heal(fault)
            assert supervisor._server is server
            assert lost not in managers_of(server)
            assert supervisor._find_exited() is None
        server.models.reload("voter", 10)


def test_when_both_managers_die_triton_is_started_again(repository: Path) -> None:
    with Supervisor(repository, FREE) as supervisor:
        former = supervisor._server
        for process in managers_of(former):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.3)
        fault = supervisor._find_exited()
        assert fault is not None
        supervisor._heal(fault)
        assert supervisor._server is not former
        assert len(managers_of(supervisor._server)) == 2


def test_files_of_a_server_are_private_from_the_start(repository: Path) -> None:
    with Server(repository, FREE) as server:
        regions = list(SHARED_MEMORY.glob(f"{server.name}*"))
        assert len(regions) > 3
        assert server._folder is not None
        folder = server._folder.path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        sockets = [folder / f"{name}.sock" for name in MANAGERS]
        for path in (*regions, *sockets, server.log.path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user takes root")
def test_another_user_finds_no_image_and_no_secret_of_a_server(repository: Path, tmp_path: Path) -> None:
    marker = b"patient-4711-looks-like-this"
    picture = tmp_path / "image.png"
    Image.fromarray(np.full((32, 32, 3), 77, np.uint8)).save(picture)
    # Behind the image's end: readers ignore it, and it travels with the image.
    encoded = picture.read_bytes() + marker
    with Server(repository, FREE) as server, EnsembleClient(server.urls.grpc) as client:
        assert len(client.predict([encoded])) == 1
        assert any(marker in path.read_bytes() for path in SHARED_MEMORY.glob(f"{server.name}*"))
        processes = " ".join(f"/proc/{process}" for process in [*server.stubs(), server._process.pid])  # type: ignore[union-attr]
        folder = server._folder.path  # type: ignore[union-attr]
        places = f"{SHARED_MEMORY}/{server.name}* {server.log.path} {folder}/* {folder}"
        script = (
            f"for one in {places}; do head -c 1 $one && echo readable $one; ls $one/. && echo listed $one; done; "
            f"for one in {processes}; do for name in environ maps mem stack syscall io fd/0; do "
            "head -c 1 $one/$name && echo readable $one/$name; done; ls $one/fd/ && echo listed $one/fd; done; true"
        )
        stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
        found = subprocess.run([*stranger, script], capture_output=True, text=True, check=True).stdout
        assert found == ""
        # The arguments can be read: what stands there opens nothing, as the tests above show.
        arguments = subprocess.run(
            [*stranger, f"cat /proc/{server._process.pid}/cmdline"],  # type: ignore[union-attr]
            capture_output=True,
            check=True,
        ).stdout
        assert NAME.encode() in arguments
        head = http.client.HTTPConnection(urlsplit(server.urls.http).netloc, timeout=10)
        with contextlib.closing(head), pytest.raises(ValueError, match="Invalid header name"):
            head.request("POST", "/v2/repository/index", headers={NAME: VALUE})
