"""Attacks on Triton's gRPC port: calls, and frames of HTTP/2 that no library would send."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from typing import Any

from plurum.benchmarks.claims.hostile.attack import ANY, REFUSED, Attacker, Kind, Make
from plurum.benchmarks.claims.hostile.wires import CLOSED, TIMEOUT, ServerPort, Wire
from plurum.benchmarks.tools.requests import bytes_element

__all__ = ["GRPC", "evil_model", "is_answered", "raw_call"]

_SERVICE = "/inference.GRPCInferenceService/"
_MANAGED = (
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    "TraceSetting", "LogSettings",
)  # fmt: skip
_HEADERS = ("triton-grpc-protocol-admin-key", "triton-grpc-protocol-x", "admin-key", "x", "triton-grpc-protocol-x-y")
_UNKNOWN = (
    "Nothing", "ModelInfer/x", "modelinfer", "", "../ModelInfer", "ModelConfig", "ModelStatistics", "ServerMetadata%00",
)  # fmt: skip
_SPELLINGS = (
    b"x y", b"triton-grpc-protocol-x y", b"X Y", b"x\ty", b"x y ", b" x y", b"x%20y", b"triton-grpc-protocol-admin-key",
    b"x\0y",
)  # fmt: skip
_MIB = 1 << 20
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEAD, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _MORE = range(10)


def evil_model(attacker: Attacker) -> bytes:
    """Return a Python model that leaves a file when it is loaded; nothing may ever run it."""
    return f"open({str(attacker.known.folder / 'ran')!r}, 'w').close()\n".encode()


def _called(attacker: Attacker, method: str, sent: bytes, metadata: list[tuple[str, Any]] | None = None) -> int:
    import grpc

    try:
        attacker.channel.unary_unary(method)(sent, timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        known = {"DEADLINE_EXCEEDED": TIMEOUT, "UNAVAILABLE": 503, "INTERNAL": 500, "CANCELLED": CLOSED}
        return known.get(error.code().name, 400)
    return 200


def _tensor(attacker: Attacker) -> Any:
    from tritonclient.grpc import service_pb2 as pb

    request = pb.ModelInferRequest(model_name="ensemble")
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(bytes_element(attacker.image()))
    return request


def _random(attacker: Attacker) -> list[int]:
    return [_called(attacker, f"{_SERVICE}ModelInfer", attacker.chance.randbytes(attacker.chance.randint(0, 500)))]


def _fuzzed(attacker: Attacker) -> list[int]:
    sent = bytearray(_tensor(attacker).SerializeToString())
    for _ in range(attacker.chance.randint(1, 20)):
        sent[attacker.chance.randrange(60)] = attacker.chance.randrange(256)
    return [_called(attacker, f"{_SERVICE}ModelInfer", bytes(sent))]


def _wrong(attacker: Attacker) -> list[int]:
    request, chance = _tensor(attacker), attacker.chance
    tensor = request.inputs[0]
    match chance.randrange(8):
        case 0:
            tensor.name = chance.choice(("", "IMAGE\0", "PIXELS", "x" * 100_000))
        case 1:
            tensor.datatype = chance.choice(("FP64", "", "UINT8", "bytes", "BYTES\0"))
        case 2:
            tensor.shape[:] = chance.choice(([0, 1], [-1, 1], [], [(1 << 63) - 1, 2], [1 << 32] * 4, [1] * 1000))
        case 3:
            request.raw_input_contents[0] = chance.choice((b"", struct.pack("<I", (1 << 32) - 1), bytes(3)))
        case 4:
            request.raw_input_contents.append(b"more")
        case 5:
            tensor.parameters["shared_memory_region"].string_param = "x"
            tensor.parameters["shared_memory_byte_size"].int64_param = chance.choice((-1, 1 << 62))
        case 6:
            request.outputs.add(name=chance.choice(("", "NONE", "LABEL\0")))
        case _:
            name = chance.choice(("timeout", "sequence_id", "priority", "binary_data_output"))
            request.parameters[name].string_param = "x" * chance.randint(0, 99)
    return [_called(attacker, f"{_SERVICE}ModelInfer", request.SerializeToString())]


def _unknown(attacker: Attacker) -> list[int]:
    services = (_SERVICE, "/grpc.reflection.v1alpha.ServerReflection/", "/grpc.channelz.v1.Channelz/", "/x/", "/")
    return [_called(attacker, attacker.choose(*services) + attacker.choose(*_UNKNOWN), b"\x0a\x08ensemble")]


def _managed(attacker: Attacker) -> list[int]:
    from tritonclient.grpc import service_pb2 as pb

    method = attacker.choose(*_MANAGED)
    request = getattr(pb, f"{method}Request", pb.RepositoryIndexRequest)()
    if "Model" in method:
        if method.endswith("Load"):
            request.ParseFromString(_load(attacker))
        request.model_name = attacker.choose("evil", "ensemble", "voter", "../evil")
    elif method == "SystemSharedMemoryRegister":
        request.name, request.key, request.byte_size = "a", "/plurum", 64
    elif method == "LogSettings":
        request.settings["log_file"].string_param = str(attacker.known.folder / "ran")
    guess = attacker.choose("", "1", "admin", attacker.chance.randbytes(16).hex())
    return [_called(attacker, _SERVICE + method, request.SerializeToString(), [(attacker.choose(*_HEADERS), guess)])]


def _load(attacker: Attacker) -> bytes:
    """Return the message that would load a model of the attacker's."""
    from tritonclient.grpc import service_pb2 as pb

    request = pb.RepositoryModelLoadRequest(model_name="evil")
    request.parameters["config"].string_param = '{"backend":"python"}'
    request.parameters["file:1/model.py"].bytes_param = evil_model(attacker)
    return bytes(request.SerializeToString())


def _huge(attacker: Attacker) -> list[int]:
    return [_called(attacker, f"{_SERVICE}ModelInfer", bytes(attacker.chance.randint(1, 64) * _MIB))]


def _bomb(attacker: Attacker) -> list[int]:
    import grpc

    call = attacker.channel.unary_unary(f"{_SERVICE}ModelInfer")
    with contextlib.suppress(grpc.RpcError):
        call(bytes(100 * _MIB), timeout=20, compression=grpc.Compression.Gzip)
    return [400]


def _cancelled(attacker: Attacker) -> list[int]:
    call = attacker.channel.unary_unary(f"{_SERVICE}ModelInfer").future(
        _tensor(attacker).SerializeToString(), timeout=10
    )
    time.sleep(attacker.chance.random() / 50)
    call.cancel()
    return [CLOSED]


def _streams(attacker: Attacker) -> Iterator[int]:
    """Open streams that send nothing, or half of what they could, and leave."""
    calls = []
    for number in range(50):
        sent = [_tensor(attacker).SerializeToString()] * (number % 3)
        calls.append(attacker.channel.stream_stream(f"{_SERVICE}ModelStreamInfer")(iter(sent), timeout=5))
    for call in calls:
        call.cancel()
        yield CLOSED


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    """Return a header field as a literal that is not indexed; both are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _request(path: str, *more: tuple[bytes, bytes]) -> bytes:
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x"))
    rest = ((b"content-type", b"application/grpc"), (b"te", b"trailers"), *more)
    return b"".join(_field(name, value) for name, value in (*fields, *rest))


def _frames(sent: bytes, attacker: Attacker, seconds: float = 0.05) -> int:
    """Send frames after a preface; whatever comes back, a connection that is still good counts as refused."""
    try:
        with Wire(attacker.place, seconds) as wire:
            wire.send(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + sent)
            outcome = wire.status()
            return 400 if outcome == TIMEOUT else CLOSED
    except OSError:
        return CLOSED


def _flood(*choices: bytes) -> Make:
    return lambda attacker: [_frames(attacker.choose(*choices), attacker)]


def _odd_frames(attacker: Attacker) -> list[int]:
    chance = attacker.chance

    def draw() -> bytes:
        kind, flags, stream = chance.randrange(256), chance.randrange(256), chance.randrange(1 << 31)
        return _frame(kind, flags, stream, chance.randbytes(chance.randrange(200)))

    return [_frames(b"".join(draw() for _ in range(20)), attacker)]


def _resets() -> bytes:
    head = _request(f"{_SERVICE}ModelInfer")
    return b"".join(_frame(_HEAD, 4, n, head) + _frame(_RESET, 0, n, struct.pack(">I", 8)) for n in range(1, 2001, 2))


def _hpack_bomb() -> bytes:
    # One long entry of the dynamic table, named thousands of times by a byte each.
    entry = b"\x40\x01a\x7f" + bytes([0xA1, 0x1E]) + b"y" * 4000
    return _frame(_HEAD, 4, 1, _request(f"{_SERVICE}ServerLive") + entry + b"\xbe" * 12_000)


def _spelled(attacker: Attacker) -> list[int]:
    """Call management with header names that libraries refuse to send."""
    chance = attacker.chance
    own, value = attacker.known.header
    bare = own.removeprefix(b"triton-grpc-protocol-")
    names = (*_SPELLINGS, own, bare, own.upper(), own.replace(b"\n", b"\r\n"), own.replace(b"\n", b" "), own + b" ")
    values = (value, value + b" ", b"1", b"")
    method = chance.choice(("RepositoryIndex", "RepositoryModelLoad"))
    sent = _load(attacker) if method.endswith("Load") else b""
    try:
        call = raw_call(method, sent, (chance.choice(names), chance.choice(values)))
        return [200 if is_answered(attacker.place, call) else 400]
    except OSError:
        return [CLOSED]


def raw_call(method: str, message: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    """Return the frames of a connection with one call in it."""
    head = _request(_SERVICE + method, *headers)
    sent = b"\0" + struct.pack(">I", len(message)) + message
    return _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEAD, 4, 1, head) + _frame(_DATA, 1, 1, sent)


def is_answered(place: ServerPort, call: bytes) -> bool:
    """Return whether a call gets a message; a refusal has none.

    Raises:
        OSError: the server accepts no connection.
    """
    with Wire(place, 1.0) as wire:
        wire.send(call)
        return _DATA in _kinds(wire.rest(0.2))


def _kinds(came: bytes) -> list[int]:
    """Return the kinds of the frames of a response."""
    kinds = []
    while len(came) >= 9:
        kinds.append(came[3])
        came = came[9 + int.from_bytes(came[:3], "big") :]
    return kinds


def _garbage(attacker: Attacker) -> list[int]:
    return [attacker.alone(attacker.choose(b"", _PREFACE, _PREFACE[:10]) + attacker.chance.randbytes(500), 0.1)]


_SOON = REFUSED | {"timeout"}
_CONTINUED = (
    _frame(_HEAD, 0, 1, _request(f"{_SERVICE}ServerLive")) + _frame(_MORE, 0, 1, _field(b"a", b"b" * 100)) * 5000
)
_WINDOWS = (_frame(_WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 100, _frame(_WINDOW, 0, 0, bytes(4)))
_EMPTY = (_frame(_DATA, 0, 1, b"") * 10_000, _frame(_PRIORITY, 0, 1, bytes(5)) * 10_000)

GRPC: dict[str, Kind] = {
    "random protobuf": Kind(_random, may=ANY),
    "fuzzed protobuf": Kind(_fuzzed, may=ANY),
    "wrong tensors over gRPC": Kind(_wrong, may=ANY),
    "unknown methods over gRPC": Kind(_unknown, may=ANY),
    "management over gRPC": Kind(_managed, may=REFUSED),
    "management in raw frames": Kind(_spelled, may=REFUSED),
    "huge messages": Kind(_huge, cost=50, may=ANY),
    "compressed messages that unfold": Kind(_bomb, cost=100, may=ANY),
    "cancelled calls": Kind(_cancelled, may=ANY, deadly=True),
    "streams that are left": Kind(_streams, cost=4, may=ANY, deadly=True),
    "garbage at the gRPC port": Kind(_garbage, may=_SOON),
    "odd frames": Kind(_odd_frames),
    "resets of streams": Kind(_flood(_resets()), cost=10, deadly=True),
    "floods of settings": Kind(_flood(_frame(_SETTINGS, 0, 0, b"\0\3\0\0\0\1") * 10_000), cost=10),
    "floods of pings": Kind(_flood(_frame(_PING, 0, 0, bytes(8)) * 10_000), cost=10),
    "floods of continuations": Kind(_flood(_CONTINUED), cost=10),
    "HPACK bombs": Kind(_flood(_hpack_bomb()), cost=4),
    "windows that overflow": Kind(_flood(*_WINDOWS)),
    "floods of empty frames": Kind(_flood(*_EMPTY), cost=10),
}  # fmt: skip
